// The explorer's front end: draws what Python sends, and sends what the user does. Text is always set as text
// (textContent, setAttribute), never as markup. Without a kernel (a snapshot) it only draws and selects.

const SVG = "http://www.w3.org/2000/svg";
const LISTED = 300; // facts in the list; the search finds the rest
const LINE = 26; // of the caption above an exported picture, in pixels
const PATIENCE = [[8, "still working: the kernel may be running another cell first"],
  [60, "no answer for a minute: if the kernel was restarted, run the cell again"]]; // seconds, text

const percent = (share) => `${(100 * share).toFixed(Math.abs(share) < 0.1 ? 1 : 0)}%`;
const logits = (value) => `${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(2)} logits`;
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
let explorers = 0;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const button = (text, onclick, more = {}) => make("button", { type: "button", onclick, ...more }, text);

function download(name, content, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// A list of which one row is chosen: by click, or with the arrow keys and Enter.
function listbox({ label, rows, chosen, choose, id }) {
  let active = Math.max(0, rows.findIndex((row) => row.key === chosen));
  const options = rows.map((row, i) => make("div", {
    role: "option", id: `${id}-${i}`, class: "mnemo-option", "data-key": row.key, "aria-selected": String(row.key === chosen),
    onclick: () => { move(i); choose(row.key); },
  }, row.shown));
  const list = make("div", { role: "listbox", tabindex: "0", "aria-label": label, class: "mnemo-list", onkeydown: (event) => {
    if (!rows.length) return;
    const to = { ArrowDown: active + 1, ArrowUp: active - 1, Home: 0, End: rows.length - 1,
      PageDown: active + 8, PageUp: active - 8 }[event.key];
    if (to !== undefined) { event.preventDefault(); move(clamp(to, 0, rows.length - 1)); }
    else if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(rows[active].key); }
  } }, options);
  function move(to) {
    options[active].classList.remove("active");
    active = to;
    const row = options[active];
    row.classList.add("active");
    list.setAttribute("aria-activedescendant", row.id);
    const [above, below] = [row.offsetTop - list.scrollTop, row.offsetTop + row.offsetHeight - list.scrollTop - list.clientHeight];
    if (above < 0) list.scrollTop += above;
    else if (below > 0) list.scrollTop += below;
  }
  if (rows.length) requestAnimationFrame(() => move(active)); // when it has its place in the page
  return list;
}

function render({ model, el }) {
  const uid = `mnemo${++explorers}`;
  const kernel = Boolean(model.send);
  let state = model.get("state");
  let scenes = model.get("scenes");
  const catalog = model.get("catalog");
  let selected = state.view.selected; // selecting repaints at once; what is read there comes from Python later
  let detail = state.detail;
  let expected = state.reply;
  let focused = null;
  let origin = null; // the part of the page that the last message came from
  let zoom = null; // null: as wide as the place for it
  let timers = [];
  const filter = { text: "", verdict: "", score: 0 };
  const scene = () => scenes[0];

  // ---- parts that stay

  const status = make("span", { class: "mnemo-status", role: "status", "aria-live": "polite" });
  const error = make("div", { class: "mnemo-error", role: "alert" });
  const busy = make("div", { class: "mnemo-busy", "aria-hidden": "true" });
  const bar = make("div", { class: "mnemo-bar", role: "toolbar", "aria-label": "view" });
  const drawing = make("div", { class: "mnemo-drawing" });
  const section = (name, title) => make("section", { class: `mnemo-card mnemo-${name}`, "aria-label": title });
  const change = section("change", "change the answer");
  const facts = section("facts", "facts");
  const chosen = section("detail", "selection");
  const paths = section("paths", "strongest paths");
  const root = make("div", {
    class: "mnemo-explorer", role: "region", "aria-label": "circuit explorer", "data-lm-suppress-shortcuts": "true",
    onkeydown: (event) => event.stopPropagation(), // the notebook has keys of its own
  }, busy, bar, make("div", { class: "mnemo-main" },
    make("div", { class: "mnemo-left" }, error, drawing, change), make("div", { class: "mnemo-right" }, facts, chosen, paths)));
  el.append(root);

  const drawn = {}; // what each part shows, so that only what changed is drawn anew and focus stays where it is
  function paint(name, data, how) {
    const now = JSON.stringify(data);
    if (drawn[name] === now) return;
    drawn[name] = now;
    how();
  }

  function wait(on) {
    timers.forEach(clearTimeout);
    timers = on ? PATIENCE.map(([seconds, text]) => setTimeout(() => { status.textContent = text; }, 1000 * seconds)) : [];
    root.setAttribute("aria-busy", String(on));
    if (on) status.textContent = "working…";
  }

  function send(message) {
    if (!kernel) {
      if (message.do === "select") { detail = model.get("details")?.[message.what] ?? {}; paintDetail(); }
      return;
    }
    expected = Math.max(expected, state.reply) + 1;
    origin = root.contains(document.activeElement) ? document.activeElement.closest(".mnemo-card") : null;
    wait(true);
    model.send(message);
  }

  function say(text) { // where the user just was, since the top may be out of sight
    if (text) (origin ?? drawing).before(error);
    error.replaceChildren(...(text ? [make("span", {}, text), button("×", () => say(""), { "aria-label": "dismiss" })] : []));
  }

  // ---- the bar

  function slider(label, attributes, shown, changed) {
    const output = make("output", {}, shown(attributes.value));
    const input = make("input", {
      type: "range", "aria-label": label, ...attributes,
      oninput: (e) => { output.textContent = shown(e.target.value); },
      onchange: (e) => changed(e.target.value),
    });
    const put = (value) => { if (document.activeElement !== input || !input.matches(":active")) { input.value = value; output.textContent = shown(value); } };
    return { put, node: make("label", { class: "mnemo-control" }, make("span", {}, label), input, output) };
  }

  const settings = {};
  function buildBar() {
    const view = state.view;
    const file = make("input", {
      type: "file", accept: ".json,application/json", class: "mnemo-hidden", tabindex: "-1", "aria-hidden": "true",
      onchange: async (e) => { if (e.target.files[0]) send({ do: "load", text: await e.target.files[0].text() }); e.target.value = ""; },
    });
    settings.share = slider("least share", { min: -4, max: -0.3, step: 0.05, value: Math.log10(Math.max(view.least_share, 1e-4)) },
      (v) => percent(10 ** v), (v) => send({ do: "show", least_share: 10 ** Number(v) }));
    settings.top = slider("paths", { min: 1, max: 50, step: 1, value: view.top }, (v) => v, (v) => send({ do: "show", top: Number(v) }));
    settings.group = make("select", { "aria-label": "group by", onchange: (e) => send({ do: "show", group: e.target.value }) },
      ["head", "layer"].map((g) => make("option", { value: g }, g === "head" ? "single heads" : "heads by layer")));
    const full = button("fullscreen", async () => {
      try { await (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen()); }
      catch (fault) { say(`this page allows no fullscreen (${fault.message})`); }
    });
    root.addEventListener("fullscreenchange", () => { full.textContent = document.fullscreenElement === root ? "leave fullscreen" : "fullscreen"; });
    bar.append(...(kernel ? [settings.share.node, settings.top.node, settings.group]
      : [make("span", { class: "mnemo-note" }, "Snapshot: no kernel behind it, so it can be looked at and not intervened on.")]),
      make("span", { class: "mnemo-space" }), status,
      ...(kernel ? [make("span", { class: "mnemo-buttons", role: "group", "aria-label": "view as a file" },
        button("save view", () => send({ do: "save" }), { title: "view, interventions and graph as JSON" }),
        button("load view", () => file.click(), { title: "open a saved view" })), file] : []),
      make("span", { class: "mnemo-buttons", role: "group", "aria-label": "export" },
        button("PNG", savePng, { title: "picture" }), button("SVG", () => download("mnemo-explorer.svg", asSvg(), "image/svg+xml"), { title: "vector picture" }),
        kernel && button("HTML", () => send({ do: "snapshot" }), { title: "a page that opens without a kernel" })),
      full);
  }

  function paintBar() {
    if (!kernel) return;
    settings.share.put(Math.log10(Math.max(state.view.least_share, 1e-4)));
    settings.top.put(state.view.top);
    settings.group.value = state.view.group;
  }

  // ---- the circuit

  const curve = (a, b) => {
    const bend = a.x === b.x ? clamp(0.22 * Math.abs(a.y - b.y), 16, 70) : 0;
    const middle = (a.y + b.y) / 2;
    return `M${a.x},${a.y} C${a.x + bend},${middle} ${b.x + bend},${middle} ${b.x},${b.y}`;
  };
  const thickness = (share) => clamp(9 * Math.sqrt(Math.abs(share)), 0.8, 9);
  const sign = (value) => (value >= 0 ? "supports" : "opposes");
  const find = (id) => scene().nodes.find((node) => node.id === id);
  const shape = (id) => drawing.querySelector(`[data-node="${CSS.escape(id)}"]`);

  function paintScenes() {
    const figures = scenes.map((one, index) => (one.missing
      ? make("figure", {}, make("figcaption", {}, make("b", {}, one.title)), make("p", { class: "mnemo-note" }, one.missing))
      : figure(one, index)));
    drawing.replaceChildren(make("div", { class: "mnemo-figures" }, figures), legend());
    rove(find(focused ?? selected)?.id ?? scene().nodes[0]?.id);
    root.classList.toggle("mnemo-compare", scenes.length > 1);
    fit();
    mark();
  }

  function figure(one, index) {
    const svg = draw("svg", {
      viewBox: `0 0 ${one.width} ${one.height}`, role: index ? "img" : "group",
      "aria-label": `circuit of ${one.title}${index ? "" : "; arrow keys move between nodes, Enter selects, Escape lets go"}`,
    });
    for (const band of one.bands) {
      svg.append(draw("rect", { class: "band", x: 0, y: band.y, width: one.width, height: band.height, rx: 5 }),
        draw("text", { class: "layer", x: 8, y: band.y + (band.folded ? 14 : 16) }, band.text));
    }
    const foot = one.height - 44;
    for (const token of one.tokens) {
      svg.append(draw("line", { class: "column", x1: token.x, x2: token.x, y1: 38, y2: foot }),
        draw("text", { x: token.x, y: one.height - 12, class: token.cue ? "token cue" : "token" }, token.text));
      if (token.cue) svg.append(draw("rect", { class: "underline", x: token.x - 12, y: one.height - 6, width: 24, height: 3, rx: 1.5 }));
    }
    svg.append(draw("text", { class: "layer", x: 8, y: one.height - 12 }, "prompt"));
    const at = Object.fromEntries(one.nodes.map((node) => [node.id, node]));
    for (const edge of one.edges) {
      const [a, b] = [at[edge.from], at[edge.to]];
      if (!a || !b) continue;
      const line = draw("path", {
        d: curve(a, b), class: `edge ${sign(edge.value)}`, "stroke-width": thickness(edge.share),
        ...(index ? {} : { "data-edge": edge.id, "data-from": edge.from, "data-to": edge.to }),
      }, draw("title", {}, `${edge.from} → ${edge.to}: ${logits(edge.value)}, ${percent(edge.share)} of the effect`));
      if (!index) line.addEventListener("click", () => choose(edge.id));
      svg.append(line);
    }
    if (!index) svg.append(draw("g", { class: "route" }));
    if (one.waypoint) svg.append(waypoint(one));
    for (const node of one.nodes) svg.append(nodeShape(one, node, index));
    return make("figure", {}, make("figcaption", {}, make("b", {}, one.title), make("span", {},
      `${logits(one.total)} against ${one.contrast}; ${one.paths.length === 1 ? "the path listed carries" : `the ${one.paths.length} paths listed carry`} ${percent(one.covered)}`)),
      make("div", { class: "mnemo-scroll", tabindex: "-1" }, svg));
  }

  function waypoint(one) {
    const { x, y, text } = one.waypoint;
    const width = 7 * text.length + 18;
    const left = clamp(x - width / 2, 4, Math.max(4, one.width - width - 4));
    return draw("g", { class: "waypoint" },
      draw("rect", { x: left, y: y - 10, width, height: 20, rx: 10 }),
      draw("text", { x: left + width / 2, y: y + 4 }, text), draw("title", {}, `waypoint, read as: ${text}`));
  }

  function nodeShape(one, node, index) {
    const name = `${node.id} (${node.token}), ${logits(node.value)}, ${percent(node.share)} of the effect`;
    const last = node.id.startsWith("logits");
    const group = draw("g", { class: `node ${sign(node.value)}${node.pinned ? " pinned" : ""}${last ? " last" : ""}` }, draw("title", {}, name));
    if (!index) {
      for (const [key, value] of Object.entries({ "data-node": node.id, role: "button", "aria-label": name, tabindex: "-1" })) group.setAttribute(key, value);
      group.addEventListener("click", () => { rove(node.id); choose(node.id); });
      group.addEventListener("focus", () => { focused = node.id; });
      group.addEventListener("keydown", (event) => key(event, node));
    }
    if (last) {
      const width = Math.max(30, 9 * one.answer.length + 18);
      group.append(draw("rect", { x: node.x - width / 2, y: node.y - 13, width, height: 26, rx: 6 }), draw("text", { class: "answer", x: node.x, y: node.y + 5 }, one.answer));
      return group;
    }
    group.append(node.id.startsWith("MLP")
      ? draw("rect", { x: node.x - node.r, y: node.y - node.r, width: 2 * node.r, height: 2 * node.r, rx: 2 })
      : draw("circle", { cx: node.x, cy: node.y, r: node.r }));
    if (node.label) group.append(node.id.startsWith("MLP")
      ? draw("text", { x: node.x + node.r + 4, y: node.y + 4, class: "name beside" }, node.label)
      : draw("text", { x: node.x, y: node.y + node.r + 10, class: "name" }, node.label));
    return group;
  }

  function legend() {
    const sample = (...parts) => draw("svg", { width: 26, height: 14, viewBox: "0 0 26 14", "aria-hidden": "true" }, ...parts);
    const item = (picture, text) => make("span", {}, picture, text);
    const zoomed = (by) => () => { zoom = by === null ? null : clamp((zoom ?? fitted()) * by, 0.3, 3); fit(); };
    return make("div", { class: "mnemo-legend" },
      item(sample(draw("circle", { class: "key supports", cx: 13, cy: 7, r: 5 })), "head"),
      item(sample(draw("rect", { class: "key supports", x: 8, y: 2, width: 10, height: 10, rx: 2 })), "MLP"),
      item(sample(draw("path", { class: "key line supports", d: "M1,7 H25" })), "supports the answer"),
      item(sample(draw("path", { class: "key line opposes", d: "M1,7 H25" })), "opposes it"),
      item(sample(draw("rect", { class: "key mark", x: 1, y: 2, width: 24, height: 10, rx: 5 })), "waypoint: concept read there"),
      make("span", {}, "size: share of the effect"), make("span", { class: "mnemo-space" }),
      make("span", { class: "mnemo-buttons", role: "group", "aria-label": "zoom" },
        button("−", zoomed(0.8), { "aria-label": "zoom out" }), button("fit", zoomed(null)), button("+", zoomed(1.25), { "aria-label": "zoom in" })));
  }

  const fitted = () => {
    const place = drawing.querySelector(".mnemo-scroll")?.clientWidth || 700;
    return clamp(place / scene().width, 0.72, 1.15);
  };
  function fit() {
    const scale = zoom ?? fitted();
    scenes.filter((one) => !one.missing).forEach((one, i) => {
      const svg = drawing.querySelectorAll(".mnemo-scroll > svg")[i];
      svg.setAttribute("width", one.width * scale);
      svg.setAttribute("height", one.height * scale);
    });
  }

  function rove(id) {
    for (const old of drawing.querySelectorAll('[data-node][tabindex="0"]')) old.setAttribute("tabindex", "-1");
    if (id) shape(id)?.setAttribute("tabindex", "0");
  }

  function key(event, node) {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(node.id); return; }
    if (event.key === "Escape") { event.preventDefault(); choose(null); return; }
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (!dx && !dy) return;
    event.preventDefault();
    let best = null;
    for (const other of scene().nodes) { // the nearest in that direction; what lies aside counts double
      const [x, y] = [other.x - node.x, other.y - node.y];
      const ahead = x * dx + y * dy;
      if (ahead <= 1) continue;
      const cost = ahead + 2 * Math.abs(x * dy + y * dx);
      if (!best || cost < best.cost) best = { cost, id: other.id };
    }
    if (!best) return;
    rove(best.id);
    shape(best.id).focus();
  }

  function choose(what) {
    selected = what;
    if (detail.id !== what) detail = {};
    mark();
    paintDetail();
    send({ do: "select", what });
  }

  function mark() {
    const route = selected?.startsWith("path ") ? scene().paths[Number(selected.slice(5)) - 1]?.nodes ?? [] : [];
    const ends = selected?.includes(">") ? selected.split(">") : [];
    for (const node of drawing.querySelectorAll("[data-node]")) {
      const on = node.dataset.node === selected || route.includes(node.dataset.node) || ends.includes(node.dataset.node);
      node.classList.toggle("selected", on);
      node.setAttribute("aria-pressed", String(node.dataset.node === selected));
    }
    for (const edge of drawing.querySelectorAll("[data-edge]")) {
      const touched = selected && (edge.dataset.from === selected || edge.dataset.to === selected);
      edge.classList.toggle("selected", edge.dataset.edge === selected);
      edge.classList.toggle("touched", Boolean(touched));
    }
    drawing.classList.toggle("mnemo-dimmed", Boolean(selected));
    const links = route.slice(1).map((node, i) => [find(route[i]), find(node)]).filter(([a, b]) => a && b);
    drawing.querySelector(".route")?.replaceChildren(...links.map(([a, b]) => draw("path", { d: curve(a, b) })));
    for (const row of paths.querySelectorAll("[data-key]")) row.setAttribute("aria-selected", String(row.dataset.key === selected));
  }

  // ---- facts

  const tag = (verdict) => make("span", { class: `mnemo-tag ${verdict}` }, verdict);

  function buildFacts() {
    if (!catalog.facts.length || !kernel) { facts.remove(); return; }
    const verdicts = [...new Set(catalog.facts.map((fact) => fact.verdict))];
    const score = slider("score ≥", { min: 0, max: 1, step: 0.05, value: 0 }, (v) => Number(v).toFixed(2), (v) => { filter.score = Number(v); paintFacts(); });
    const beside = make("input", { list: `${uid}-beside`, placeholder: "another cue", "aria-label": "cue to compare with",
      onkeydown: (e) => { if (e.key === "Enter") compare(); } });
    const compare = () => send({ do: "beside", fact: beside.value || null });
    facts.append(make("h4", {}, "facts ", make("span", { class: "mnemo-note mnemo-count" })),
      make("div", { class: "mnemo-row" },
        make("input", { type: "search", placeholder: "search", "aria-label": "search facts", title: "in cues, answers and concepts", oninput: (e) => { filter.text = e.target.value; paintFacts(); } }),
        make("select", { "aria-label": "verdict", onchange: (e) => { filter.verdict = e.target.value; paintFacts(); } },
          make("option", { value: "" }, "any verdict"), verdicts.map((v) => make("option", { value: v }, v)))),
      score.node, make("div", { class: "mnemo-found" }),
      make("div", { class: "mnemo-row" }, make("span", { class: "mnemo-note" }, "beside it"), beside,
        make("datalist", { id: `${uid}-beside` }, catalog.facts.slice(0, 1000).map((fact) => make("option", { value: fact.cue }))),
        button("compare", compare), button("close", () => { beside.value = ""; compare(); }, { "aria-label": "close the comparison" })));
    paintFacts();
  }

  function paintFacts() {
    const words = filter.text.toLowerCase();
    const found = catalog.facts.filter((fact) => (!filter.verdict || fact.verdict === filter.verdict) && (fact.score ?? 0) >= filter.score
      && `${fact.cue} ${fact.answer} ${fact.concept ?? ""}`.toLowerCase().includes(words));
    facts.querySelector(".mnemo-count").textContent = `${found.length} of ${catalog.facts.length}${found.length > LISTED ? `, the first ${LISTED} listed` : ""}`;
    const at = found.findIndex((fact) => fact.fact_id === state.view.fact);
    const rows = [...(at >= LISTED ? [found[at]] : []), ...found.slice(0, LISTED)].map((fact) => ({ key: fact.fact_id, shown: [
      make("span", { class: "mnemo-cue" }, `${cut(fact.cue, 24)} → ${cut(fact.answer, 12)}`),
      make("span", { class: "mnemo-soft", title: fact.concept }, fact.concept ?? ""),
      tag(fact.verdict), make("span", { class: "mnemo-number" }, fact.score == null ? "" : fact.score.toFixed(2))] }));
    facts.querySelector(".mnemo-found").replaceChildren(rows.length
      ? listbox({ label: "facts", rows, chosen: state.view.fact, choose: (fact) => send({ do: "fact", fact }), id: `${uid}-fact` })
      : make("p", { class: "mnemo-note" }, "No fact is like that."));
  }

  // ---- the selection

  function bars(rows) {
    return make("div", { class: "mnemo-bars" }, rows.map(([text, value, shown]) => [
      make("span", { title: text }, text),
      make("span", { class: "mnemo-track" }, make("span", { class: "mnemo-fill", style: `width:${100 * clamp(value, 0, 1)}%` })),
      make("span", { class: "mnemo-number" }, shown)]));
  }
  const goto = (id, text, ...more) => make("button", { type: "button", class: "mnemo-goto", onclick: () => choose(id) }, make("span", { class: "mnemo-mono" }, text), more);
  const heading = (text, note) => make("h5", {}, text, note && make("span", { class: "mnemo-note" }, ` ${note}`));

  function paintDetail() {
    paint("detail", [selected, detail, state.live, find(selected)], () => {
      const about = detail.id === selected ? detail : {};
      const node = find(selected);
      const drawnAs = node ?? scene().edges.find((edge) => edge.id === selected);
      const parts = [make("h4", {}, "selection")];
      if (!selected) parts.push(make("p", { class: "mnemo-note" }, "Click a node, an edge or a path. By keyboard: Tab into the circuit, arrow keys, Enter."));
      else {
        const title = about.title ?? selected.replace(">", " → ");
        parts.push(make("p", { class: "mnemo-title" }, make("span", { class: "mnemo-mono" }, title), node && make("span", { class: "mnemo-soft" }, ` at “${node.token}”`)));
        const value = about.value ?? drawnAs?.value;
        if (value != null) parts.push(make("p", { class: "mnemo-score" }, logits(value), make("span", { class: "mnemo-soft" }, ` · ${percent(about.share ?? drawnAs.share)} of the effect`)));
        if (kernel && state.live && !selected.startsWith("logits")) parts.push(actions(node, about.part ?? (node && selected)));
        parts.push(...read(about));
      }
      chosen.replaceChildren(...parts.filter(Boolean));
    });
  }

  function actions(node, part) { // an edge or a path is changed for its own components alone
    if (!part) return null;
    const patch = () => { if (cue.value) send({ do: "patch", part, cue: cue.value }); };
    const cue = make("input", { list: `${uid}-cues`, placeholder: "cue of another fact", "aria-label": "cue to patch from",
      onkeydown: (e) => { if (e.key === "Enter") patch(); } });
    return make("div", { class: "mnemo-row" },
      button("ablate", () => send({ do: "ablate", part }), { title: "set it to its mean over other facts" }),
      node && button(node.pinned ? "unpin" : "pin", () => send({ do: "pin", node: node.id }), { "aria-pressed": String(Boolean(node.pinned)), title: "show it however weak it is" }),
      make("span", { class: "mnemo-joined" }, cue, make("datalist", { id: `${uid}-cues` }, catalog.facts.slice(0, 1000).map((fact) => make("option", { value: fact.cue }))),
        button("patch", patch, { title: "set it to what it is for that cue" })));
  }

  function read(about) {
    const parts = [];
    const slots = Object.entries(about.slots ?? {});
    if (slots.length) parts.push(heading("read as"), make("p", {}, slots.map(([slot, value]) => `${{ q: "query", k: "key", v: "value" }[slot]} ${logits(value)}`).join(" · ")));
    if (about.steps) parts.push(make("ol", { class: "mnemo-steps" }, about.steps.map((step) => make("li", {}, goto(step.id, step.text,
      step.concept ? make("span", {}, step.concept.phrase, make("span", { class: "mnemo-soft" }, ` ${step.concept.ratio.toFixed(1)}`)) : make("span", { class: "mnemo-soft" }, step.token ?? ""), make("span", { class: "mnemo-number" }, step.value == null ? "" : logits(step.value)))))),
      make("p", { class: "mnemo-note" }, "Beside each step: the concept read behind it (nats per token over other facts; near 0 means nothing), else the first token by the logit lens; and what all paths through it carry."));
    if (about.concepts?.length) {
      const most = Math.max(...about.concepts.map((c) => c.ratio), 1e-9);
      parts.push(heading("reads as, concepts", "nats per token over other facts"), bars(about.concepts.map((c) => [c.phrase, c.ratio / most, c.ratio.toFixed(2)])));
    }
    if (about.tokens) parts.push(heading("reads as, tokens", "logit lens, probability"), bars(about.tokens.map((t) => [t.token, t.p, percent(t.p)])));
    if (about.attention) parts.push(heading("attends to", "weight"), bars(about.attention.map((t) => [t.token, t.weight, percent(t.weight)])));
    if (about.ends) parts.push(heading("its ends"), make("div", { class: "mnemo-row" }, about.ends.map((id) => goto(id, id))));
    if (about.edges?.length) parts.push(heading("strongest edges"), make("div", {}, about.edges.map((edge) => goto(edge.id, `${edge.from} → ${edge.to}`,
      make("span", { class: "mnemo-number" }, percent(edge.share))))));
    return parts;
  }

  // ---- changing the answer

  function buildChange() {
    const swap = () => { if (concept.value.trim()) send({ do: "swap", concept: concept.value }); };
    const concept = make("input", { list: `${uid}-concepts`, placeholder: "another concept", "aria-label": "concept to swap for",
      onkeydown: (e) => { if (e.key === "Enter") swap(); } });
    change.append(make("h4", {}, "change the answer"));
    if (kernel && state.live) change.append(make("div", { class: "mnemo-row" }, make("span", { class: "mnemo-joined" }, concept,
      make("datalist", { id: `${uid}-concepts` }, catalog.concepts.map((c) => make("option", { value: c }))), button("swap concept", swap, { class: "mnemo-primary" })),
      make("span", { class: "mnemo-note" }, "or select a component and ablate or patch it")));
    else change.append(make("p", { class: "mnemo-note" }, kernel ? "A trace alone has no model: open the explorer with mnemo.explore(study) to intervene." : state.log.length ? "What had been done when the snapshot was made:" : "Nothing had been changed when the snapshot was made."));
    change.append(make("div", { class: "mnemo-outcomes", "aria-live": "polite" }), make("div", { class: "mnemo-log" }));
  }

  function paintOutcomes() {
    paint("outcomes", state.outcomes, () => change.querySelector(".mnemo-outcomes").replaceChildren(...state.outcomes.map((outcome) => make("div", {},
      state.outcomes.length > 1 && heading(outcome.title), outcome.error ? make("p", { class: "mnemo-note" }, outcome.error) : answers(outcome)))));
  }

  function answers(outcome) {
    const cell = (p, kind) => make("td", {}, make("span", { class: "mnemo-track" }, make("span", { class: `mnemo-fill ${kind}`, style: `width:${100 * p}%` })), make("span", { class: "mnemo-number" }, p.toFixed(2)));
    const same = outcome.says === outcome.said;
    const foreseen = outcome.predicted == null ? null : `${outcome.predicted} was predicted beforehand${outcome.predicted === outcome.says ? ", and it came" : ", and did not come"}.`;
    const noted = (answer) => [answer === outcome.said && "before", answer === outcome.predicted && "predicted"].filter(Boolean).join(", ");
    return make("div", {}, make("p", { class: "mnemo-says", "data-testid": "says" }, same ? "The model still says " : "The model now says ", make("b", {}, outcome.says), same ? ". " : ` instead of ${outcome.said}. `, foreseen),
      make("table", {}, make("thead", {}, make("tr", {}, ["answer", "before", "after", "control"].map((h) => make("th", { scope: "col" }, h)))),
        make("tbody", {}, outcome.answers.map((answer, i) => make("tr", {}, make("th", { scope: "row" }, answer, make("span", { class: "mnemo-note" }, ` ${noted(answer)}`)),
          cell(outcome.before[i], "before"), cell(outcome.after[i], "after"), cell(outcome.control[i], "control"))))),
      make("p", { class: "mnemo-note" }, `Probabilities. Control: random directions of the same norm at the same places (mean); ${percent(outcome.control_moved)} of them move the first choice.`));
  }

  function paintLog() {
    paint("log", [state.log, state.code], () => {
      const log = change.querySelector(".mnemo-log");
      if (!state.log.length) { log.replaceChildren(); return; }
      const copy = button("copy", async () => {
        try { await navigator.clipboard.writeText(state.code); copy.textContent = "copied"; } catch { say("this page may not copy: select the code and copy it"); }
      });
      log.replaceChildren(heading("interventions, all at once"), make("ol", {}, state.log.map((text) => make("li", {}, make("span", {}, text)))),
        make("div", { class: "mnemo-row" }, ...(kernel ? [button("undo", () => send({ do: "undo" })), button("clear", () => send({ do: "clear" }))] : [])),
        state.code ? make("details", {}, make("summary", {}, "as Python"), make("div", { class: "mnemo-row" }, copy,
          button("download", () => download("mnemo-interventions.py", state.code, "text/x-python"))), make("pre", { tabindex: "0", "aria-label": "code" }, state.code)) : "");
    });
  }

  function paintPaths() {
    paint("paths", scene().paths, () => {
      const most = Math.max(...scene().paths.map((path) => Math.abs(path.share)), 1e-9);
      const rows = scene().paths.map((path, i) => ({ key: `path ${i + 1}`, shown: [
        make("span", { class: "mnemo-number" }, percent(path.share)),
        make("span", { class: "mnemo-track" }, make("span", { class: `mnemo-fill ${sign(path.share)}`, style: `width:${(100 * Math.abs(path.share)) / most}%` })),
        make("span", { class: "mnemo-route" }, path.text.replaceAll(" -> ", " → "))] }));
      paths.replaceChildren(make("h4", {}, "strongest paths ", make("span", { class: "mnemo-note" }, "share of the effect")),
        listbox({ label: "paths", rows, chosen: selected, choose, id: `${uid}-path` }));
    });
  }

  // ---- files

  function asSvg() {
    const shown = scenes.filter((one) => !one.missing);
    const kept = ["fill", "fill-opacity", "stroke", "paint-order", "stroke-width", "stroke-dasharray", "stroke-opacity", "opacity", "font-size", "font-family", "font-weight", "text-anchor"];
    let y = 0;
    const parts = [...drawing.querySelectorAll(".mnemo-scroll > svg")].flatMap((svg, i) => {
      const clone = svg.cloneNode(true);
      const originals = svg.querySelectorAll("*");
      clone.querySelectorAll("*").forEach((node, j) => { // outside the page no style sheet says what things look like
        const style = getComputedStyle(originals[j]);
        for (const name of kept) node.setAttribute(name, style.getPropertyValue(name));
      });
      for (const [name, value] of Object.entries({ y: y + LINE, width: shown[i].width, height: shown[i].height })) clone.setAttribute(name, value);
      const title = draw("text", { x: 8, y: y + 18, "font-size": 14, "font-weight": 600, "font-family": "sans-serif", fill: getComputedStyle(root).color },
        `${shown[i].title} (${logits(shown[i].total)})`);
      y += shown[i].height + LINE;
      return [title, clone];
    });
    const width = Math.max(...shown.map((one) => one.width));
    const whole = draw("svg", { xmlns: SVG, width, height: y, viewBox: `0 0 ${width} ${y}` },
      draw("rect", { width: "100%", height: "100%", fill: getComputedStyle(root).backgroundColor }), ...parts);
    return new XMLSerializer().serializeToString(whole);
  }

  function savePng() {
    const image = new Image();
    image.onload = () => {
      const canvas = make("canvas", { width: 2 * image.width, height: 2 * image.height });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => (blob ? download("mnemo-explorer.png", blob) : say("the picture is too large for a PNG: save it as SVG")));
    };
    image.onerror = () => say("the picture could not be drawn: save it as SVG");
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(asSvg())}`;
  }

  // ---- everything

  function update() {
    const before = state.reply;
    state = model.get("state");
    scenes = model.get("scenes");
    const waiting = state.reply < expected;
    if (!waiting) { selected = state.view.selected; detail = state.detail; } // else an older choice would flicker
    if (state.reply !== before) {
      say(state.error);
      wait(waiting);
      if (!waiting) status.textContent = state.error ? "" : state.said || "ready";
      for (const [name, content] of Object.entries(state.files)) download(name, content, name.endsWith(".html") ? "text/html" : "application/json");
    }
    repaint();
  }

  function repaint() {
    const held = root.contains(document.activeElement) ? document.activeElement : null;
    const name = held?.getAttribute("aria-label") ?? held?.textContent;
    paintBar();
    paint("scenes", scenes, paintScenes);
    for (const option of facts.querySelectorAll("[data-key]")) option.setAttribute("aria-selected", String(option.dataset.key === state.view.fact));
    paintPaths(); paintDetail(); paintOutcomes(); paintLog(); mark();
    if (held && !held.isConnected) { // what had the focus was drawn anew
      const again = held.dataset?.node ? shape(focused) ?? drawing.querySelector('[data-node][tabindex="0"]')
        : [...root.querySelectorAll(held.tagName)].find((node) => (node.getAttribute("aria-label") ?? node.textContent) === name) ?? root.querySelector('[data-node][tabindex="0"]');
      again?.focus({ preventScroll: true });
    }
  }

  buildBar(); buildFacts(); buildChange(); say(state.error); repaint();
  const resized = new ResizeObserver(() => { if (zoom === null) fit(); });
  resized.observe(drawing);
  model.on?.("change:state", update);
  model.on?.("change:scenes", update);
  return () => { resized.disconnect(); wait(false); model.off?.("change:state", update); model.off?.("change:scenes", update); };
}

export default { render };

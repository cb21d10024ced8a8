// The explorer's front end: draws the state that Python sends, and sends what the user does. Text is always set as
// text (textContent, setAttribute), never as markup. Without a kernel (a snapshot) it only draws and selects.

const SVG = "http://www.w3.org/2000/svg";
const percent = (share) => `${(100 * share).toFixed(Math.abs(share) < 0.1 ? 1 : 0)}%`;
const logits = (value) => `${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(2)} logits`;
let explorers = 0;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

function draw(tag, attributes = {}, text = null) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}

function download(name, content, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function render({ model, el }) {
  const uid = `mnemo${++explorers}`;
  const root = make("div", { class: "mnemo-explorer", role: "region", "aria-label": "circuit explorer" });
  el.append(root);
  let state = model.get("state");
  let selected = state.view.selected; // selecting repaints at once; what is read there comes from Python later
  let focused = null;
  let search = "";
  let verdict = "";
  let least = 0;

  const send = (message) => {
    if (!state.live && !["select", "show", "pin", "save", "load", "snapshot"].includes(message.do)) return;
    if (!model.send) return;
    root.setAttribute("aria-busy", "true");
    status.textContent = "working…";
    model.send(message);
  };

  // ---- parts that stay: focus and scrolling survive a new state

  const status = make("div", { class: "mnemo-status", role: "status", "aria-live": "polite" });
  const error = make("div", { class: "mnemo-error", role: "alert" });
  const bar = make("div", { class: "mnemo-bar" });
  const drawing = make("div", { class: "mnemo-drawing" });
  const side = make("div", { class: "mnemo-side" });
  const facts = make("div", { class: "mnemo-facts" });
  const detail = make("section", { class: "mnemo-detail", "aria-label": "selection" });
  const paths = make("section", { class: "mnemo-paths", "aria-label": "paths" });
  const result = make("section", { class: "mnemo-result", "aria-label": "answers", "aria-live": "polite" });
  const log = make("section", { class: "mnemo-log", "aria-label": "interventions" });
  side.append(facts, detail, result, log, paths);
  root.append(bar, error, make("div", { class: "mnemo-main" }, drawing, side), status);

  const slider = (label, attributes, shown, change) => {
    const output = make("output", {}, shown(attributes.value));
    const input = make("input", {
      type: "range", ...attributes,
      oninput: (e) => { output.textContent = shown(e.target.value); },
      onchange: (e) => change(e.target.value),
    });
    return make("label", { class: "mnemo-control" }, `${label} `, input, output);
  };

  function paintBar() {
    const fullscreen = () => (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen?.());
    const file = make("input", {
      type: "file", accept: ".json,application/json", class: "mnemo-hidden", tabindex: "-1", "aria-hidden": "true",
      onchange: async (e) => { if (e.target.files[0]) send({ do: "load", text: await e.target.files[0].text() }); e.target.value = ""; },
    });
    const button = (text, action, title) => make("button", { type: "button", onclick: action, title }, text);
    const kernel = model.send
      ? [
          slider("least share", { min: -4, max: -0.3, step: 0.05, value: Math.log10(Math.max(state.view.least_share, 1e-4)) },
            (v) => percent(10 ** v), (v) => send({ do: "show", least_share: 10 ** Number(v) })),
          slider("paths", { min: 1, max: 50, step: 1, value: state.view.top }, (v) => v, (v) => send({ do: "show", top: Number(v) })),
          make("label", { class: "mnemo-control" }, "group by ",
            make("select", { onchange: (e) => send({ do: "show", group: e.target.value }) },
              ...["head", "layer"].map((g) => make("option", { value: g, selected: g === state.view.group }, g)))),
        ]
      : [make("span", { class: "mnemo-note" }, "snapshot: no kernel, so nothing can be intervened on here")];
    const more = model.send
      ? [
          button("save view", () => send({ do: "save" }), "download view and graph as JSON"),
          button("load view", () => file.click(), "open a saved view"), file,
          button("HTML", () => send({ do: "snapshot" }), "download a page that opens without a kernel"),
        ]
      : [];
    bar.replaceChildren(...kernel, make("span", { class: "mnemo-space" }), ...more,
      button("SVG", () => download("mnemo-explorer.svg", asSvg(), "image/svg+xml")),
      button("PNG", savePng), button("fullscreen", fullscreen));
  }

  // ---- the circuit

  function paintScenes() {
    const scenes = state.scenes.map((scene, index) => {
      const svg = draw("svg", {
        viewBox: `0 0 ${scene.width} ${scene.height + 22}`, width: scene.width, height: scene.height + 22, role: "group",
        "aria-label": `circuit of ${scene.title}; arrow keys move between nodes, Enter selects`,
      });
      for (const layer of scene.layers) svg.append(draw("text", { x: 6, y: layer.y + 4, class: "layer" }, layer.text));
      for (const token of scene.tokens) {
        const text = draw("text", { x: token.x, y: scene.height + 14, class: token.cue ? "token cue" : "token" }, token.text);
        svg.append(text);
      }
      if (scene.waypoint) {
        const mark = draw("g", { class: "waypoint" });
        mark.append(draw("rect", { x: scene.waypoint.x - 34, y: scene.waypoint.y - 3, width: 68, height: 6, rx: 3 }),
          draw("title", {}, `waypoint: ${scene.waypoint.text}`));
        const label = scene.waypoint.text.length > 28 ? `${scene.waypoint.text.slice(0, 27)}…` : scene.waypoint.text;
        mark.append(draw("text", { x: scene.waypoint.x + 38, y: scene.waypoint.y + 4 }, label));
        svg.append(mark);
      }
      const at = Object.fromEntries(scene.nodes.map((node) => [node.id, node]));
      for (const edge of scene.edges) {
        const [a, b] = [at[edge.from], at[edge.to]];
        if (!a || !b) continue;
        const bend = a.x === b.x ? 26 : 0;
        const line = draw("path", {
          d: `M${a.x},${a.y} C${a.x + bend},${(a.y + b.y) / 2} ${b.x + bend},${(a.y + b.y) / 2} ${b.x},${b.y}`,
          class: `edge ${edge.value >= 0 ? "supports" : "opposes"}`, "data-edge": edge.id,
          "stroke-width": Math.max(0.8, 9 * Math.sqrt(Math.min(1, Math.abs(edge.share)))),
        });
        line.append(draw("title", {}, `${edge.from} → ${edge.to}: ${logits(edge.value)} (${percent(edge.share)})`));
        if (index === 0) line.addEventListener("click", () => choose(edge.id));
        svg.append(line);
      }
      const nodes = draw("g", {});
      for (const node of scene.nodes) {
        const name = `${node.id} (${node.token}), ${logits(node.value)}, ${percent(node.share)} of the effect`;
        const shape = draw("g", { class: `node ${node.value >= 0 ? "supports" : "opposes"}${node.pinned ? " pinned" : ""}`,
          "data-node": node.id, role: "button", "aria-label": name, tabindex: "-1" });
        shape.append(node.id.startsWith("MLP")
          ? draw("rect", { x: node.x - node.r, y: node.y - node.r, width: 2 * node.r, height: 2 * node.r, rx: 2 })
          : draw("circle", { cx: node.x, cy: node.y, r: node.r }));
        shape.append(draw("title", {}, name));
        if (node.r > 6 || node.id.startsWith("logits")) {
          const short = node.id.startsWith("logits") ? `logits: ${scene.answer}` : node.id.startsWith("embed") ? "" : node.id.split("@")[0];
          const beside = node.id.startsWith("MLP"); // above it may stand the mark of the waypoint
        shape.append(draw("text", beside
          ? { x: node.x + node.r + 4, y: node.y + 4, class: "name beside" }
          : { x: node.x, y: node.y - node.r - 3, class: "name" }, short));
        }
        if (index === 0) {
          shape.addEventListener("click", () => choose(node.id));
          shape.addEventListener("focus", () => { focused = node.id; });
          shape.addEventListener("keydown", (e) => key(e, node, scene));
        }
        nodes.append(shape);
      }
      svg.append(nodes);
      return make("figure", {}, make("figcaption", {},
        `${scene.title}  ·  ${logits(scene.total)}, of which the ${scene.paths.length} paths shown carry ${percent(scene.covered)}`), svg);
    });
    const legend = make("p", { class: "mnemo-legend" },
      "○ head   □ MLP   size: share of the effect   solid, blue: supports the answer   dashed, orange: opposes it   bar: waypoint");
    drawing.replaceChildren(...scenes, legend);
    const first = drawing.querySelector(`[data-node="${CSS.escape(focused ?? selected ?? "")}"]`) ?? drawing.querySelector("[data-node]");
    first?.setAttribute("tabindex", "0");
    mark();
  }

  function key(event, node, scene) {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(node.id); return; }
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (!dx && !dy) return;
    event.preventDefault();
    event.stopPropagation();
    let best = null;
    for (const other of scene.nodes) { // the nearest in that direction; what lies aside counts double
      const [x, y] = [other.x - node.x, other.y - node.y];
      const ahead = x * dx + y * dy;
      if (ahead <= 1) continue;
      const cost = ahead + 2 * Math.abs(x * dy + y * dx);
      if (!best || cost < best.cost) best = { cost, id: other.id };
    }
    if (!best) return;
    event.currentTarget.setAttribute("tabindex", "-1");
    const next = drawing.querySelector(`[data-node="${CSS.escape(best.id)}"]`);
    next.setAttribute("tabindex", "0");
    next.focus();
  }

  function choose(what) {
    selected = what;
    mark();
    paintDetail();
    send({ do: "select", what });
  }

  function mark() {
    const path = selected?.startsWith("path ") ? state.scenes[0].paths[Number(selected.slice(5)) - 1] : null;
    const steps = path?.nodes ?? [];
    const links = new Set(steps.slice(1).map((node, i) => `${steps[i]}>${node}`));
    for (const node of root.querySelectorAll("[data-node]")) {
      const on = node.dataset.node === selected || steps.includes(node.dataset.node);
      node.classList.toggle("selected", on);
      node.setAttribute("aria-pressed", String(on));
    }
    for (const edge of root.querySelectorAll("[data-edge]"))
      edge.classList.toggle("selected", edge.dataset.edge === selected || links.has(edge.dataset.edge));
    root.classList.toggle("mnemo-dimmed", Boolean(path));
    for (const row of paths.querySelectorAll("[data-path]"))
      row.setAttribute("aria-pressed", String(row.dataset.path === selected));
  }

  // ---- beside it

  function paintFacts() {
    if (!state.facts.length || !model.send) { facts.replaceChildren(); return; }
    const shown = state.facts.filter((fact) =>
      (!verdict || fact.verdict === verdict) && (fact.score ?? 0) >= least &&
      `${fact.cue} ${fact.answer} ${fact.concept ?? ""}`.toLowerCase().includes(search.toLowerCase()));
    const option = (fact, chosen) => make("option", { value: fact.fact_id, selected: fact.fact_id === chosen },
      `${fact.cue} → ${fact.answer}${fact.concept ? ` (${fact.concept})` : ""}, ${fact.verdict}${fact.score == null ? "" : ` ${fact.score.toFixed(2)}`}`);
    const list = make("select", { size: 5, "aria-label": "facts", onchange: (e) => send({ do: "fact", fact: e.target.value }) },
      ...shown.map((fact) => option(fact, state.view.fact)));
    const verdicts = [...new Set(state.facts.map((fact) => fact.verdict))];
    const again = (change) => (e) => { change(e.target.value); paintList(); };
    const paintList = () => { const at = document.activeElement?.dataset?.filter; paintFacts(); if (at) facts.querySelector(`[data-filter="${at}"]`)?.focus(); };
    facts.replaceChildren(
      make("div", { class: "mnemo-row" },
        make("input", { type: "search", "data-filter": "text", placeholder: "search facts", "aria-label": "search facts", value: search, oninput: again((v) => { search = v; }) }),
        make("select", { "data-filter": "verdict", "aria-label": "verdict", onchange: again((v) => { verdict = v; }) },
          make("option", { value: "" }, "any verdict"), ...verdicts.map((v) => make("option", { value: v, selected: v === verdict }, v))),
        make("label", {}, "score ≥ ", make("input", { type: "number", "data-filter": "score", min: 0, max: 1, step: 0.1, value: least, onchange: again((v) => { least = Number(v) || 0; }) }))),
      list,
      make("label", { class: "mnemo-row" }, "beside it ",
        make("select", { onchange: (e) => send({ do: "beside", fact: e.target.value || null }) },
          make("option", { value: "" }, "nothing"), ...shown.slice(0, 500).map((fact) => option(fact, state.view.beside)))));
    const box = facts.querySelector('[data-filter="text"]');
    box.setSelectionRange(search.length, search.length);
  }

  function bars(rows) {
    return make("div", { class: "mnemo-bars" }, ...rows.map(([text, value, shown]) =>
      make("div", { class: "mnemo-barrow" }, make("span", { title: text }, text),
        make("span", { class: "mnemo-track" }, make("span", { class: "mnemo-fill", style: `width:${Math.max(0, Math.min(1, value)) * 100}%` })),
        make("span", {}, shown))));
  }

  function paintDetail() {
    const about = state.detail.title === selected || selected?.startsWith("path ") ? state.detail : {};
    const node = state.scenes[0].nodes.find((one) => one.id === selected);
    const parts = [make("h4", {}, "selection")];
    if (!selected) parts.push(make("p", {}, "Click a node, an edge or a path, or use the arrow keys and Enter."));
    else {
      parts.push(make("p", { class: "mnemo-title" }, about.title ?? selected));
      const value = about.value ?? node?.value;
      if (value != null) parts.push(make("p", {}, `${logits(value)}, ${percent(about.share ?? node.share)} of the effect`));
      if (about.tokens) parts.push(make("h5", {}, "the stream after it reads as (logit lens)"), bars(about.tokens.map((t) => [t.token, t.p, percent(t.p)])));
      if (about.attention) parts.push(make("h5", {}, "attends to"), bars(about.attention.map((t) => [t.token, t.weight, percent(t.weight)])));
      if (about.concepts?.length) parts.push(make("h5", {}, "read at the waypoint (nats per token over other facts)"),
        bars(about.concepts.map((c) => [c.phrase, c.ratio / Math.max(...about.concepts.map((d) => d.ratio), 1e-9), c.ratio.toFixed(2)])));
    }
    if (state.live && model.send) {
      const list = `${uid}-cues`;
      const cue = make("input", { list, placeholder: "cue of another fact", "aria-label": "cue to patch from" });
      const writes = node && !selected.startsWith("logits");
      if (writes) parts.push(make("div", { class: "mnemo-row" },
        make("button", { type: "button", onclick: () => send({ do: "ablate", node: selected }) }, "ablate"),
        make("button", { type: "button", "aria-pressed": String(Boolean(node.pinned)), onclick: () => send({ do: "pin", node: selected }) }, node.pinned ? "unpin" : "pin"),
        cue, make("datalist", { id: list }, ...state.facts.slice(0, 500).map((fact) => make("option", { value: fact.cue }))),
        make("button", { type: "button", onclick: () => cue.value && send({ do: "patch", node: selected, cue: cue.value }) }, "patch")));
      const concept = make("input", { list: `${uid}-concepts`, placeholder: "another concept", "aria-label": "concept to swap for",
        onkeydown: (e) => { if (e.key === "Enter" && concept.value) send({ do: "swap", concept: concept.value }); } });
      parts.push(make("div", { class: "mnemo-row" }, concept,
        make("datalist", { id: `${uid}-concepts` }, ...state.concepts.map((c) => make("option", { value: c }))),
        make("button", { type: "button", onclick: () => concept.value && send({ do: "swap", concept: concept.value }) }, "swap concept")));
    }
    detail.replaceChildren(...parts);
  }

  function paintOutcome() {
    const outcome = state.outcome;
    if (!outcome) { result.replaceChildren(); return; }
    const cell = (p) => make("td", {}, make("span", { class: "mnemo-track" }, make("span", { class: "mnemo-fill", style: `width:${100 * p}%` })), ` ${p.toFixed(2)}`);
    result.replaceChildren(make("h4", {}, "answers"),
      make("p", { "data-testid": "says" }, `The model now says ${outcome.says}.${outcome.predicted == null ? "" : ` Predicted beforehand: ${outcome.predicted}.`}`),
      make("table", {},
        make("thead", {}, make("tr", {}, ...["answer", "before", "after", "control"].map((h) => make("th", { scope: "col" }, h)))),
        make("tbody", {}, ...outcome.answers.map((answer, i) => make("tr", {}, make("th", { scope: "row" }, answer), cell(outcome.before[i]), cell(outcome.after[i]), cell(outcome.control[i]))))),
      make("p", { class: "mnemo-note" }, "Probabilities. Control: random directions of the same norm at the same places."));
  }

  function paintLog() {
    if (!state.log.length) { log.replaceChildren(); return; }
    const live = state.live && model.send;
    log.replaceChildren(make("h4", {}, "interventions, all together"), make("ol", {}, ...state.log.map((text) => make("li", {}, text))),
      live ? make("div", { class: "mnemo-row" },
        make("button", { type: "button", onclick: () => send({ do: "undo" }) }, "undo"),
        make("button", { type: "button", onclick: () => send({ do: "clear" }) }, "clear")) : null,
      make("details", {}, make("summary", {}, "as code"), make("pre", {}, state.code)));
  }

  function paintPaths() {
    const rows = state.scenes[0].paths.map((path, i) => make("button", { type: "button", class: "mnemo-path", "data-path": `path ${i + 1}`,
      onclick: () => choose(`path ${i + 1}`) }, make("span", {}, percent(path.share)), ` ${path.text}`));
    paths.replaceChildren(make("h4", {}, "strongest paths"), ...rows);
  }

  // ---- files

  function asSvg() {
    const clones = [...drawing.querySelectorAll("svg")].map((svg) => {
      const clone = svg.cloneNode(true);
      const originals = svg.querySelectorAll("*");
      clone.querySelectorAll("*").forEach((node, i) => { // outside the page no style sheet says what things look like
        const style = getComputedStyle(originals[i]);
        for (const name of ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family", "font-weight", "text-anchor"])
          node.setAttribute(name, style.getPropertyValue(name));
      });
      return clone;
    });
    const sizes = state.scenes.map((scene) => [scene.width, scene.height + 22]);
    const whole = draw("svg", { xmlns: SVG, width: Math.max(...sizes.map((s) => s[0])), height: sizes.reduce((sum, s) => sum + s[1], 0) });
    whole.append(draw("rect", { width: "100%", height: "100%", fill: getComputedStyle(root).backgroundColor }));
    let y = 0;
    clones.forEach((clone, i) => { clone.setAttribute("y", y); y += sizes[i][1]; whole.append(clone); });
    return new XMLSerializer().serializeToString(whole);
  }

  function savePng() {
    const image = new Image();
    image.onload = () => {
      const canvas = make("canvas", { width: 2 * image.width, height: 2 * image.height });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => download("mnemo-explorer.png", blob));
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(asSvg())}`;
  }

  function paint() {
    const held = root.contains(document.activeElement) ? document.activeElement : null;
    const label = held?.getAttribute("aria-label") ?? held?.textContent;
    error.textContent = state.error;
    root.setAttribute("aria-busy", "false");
    status.textContent = state.error ? "" : state.said || "ready";
    paintBar(); paintFacts(); paintScenes(); paintDetail(); paintOutcome(); paintLog(); paintPaths();
    mark();
    if (held && !held.isConnected) { // what had the focus was drawn anew
      const again = focused && held.dataset?.node ? drawing.querySelector(`[data-node="${CSS.escape(focused)}"]`)
        : [...root.querySelectorAll(held.tagName)].find((node) => (node.getAttribute("aria-label") ?? node.textContent) === label);
      again?.focus({ preventScroll: true });
    }
  }

  const update = () => {
    state = model.get("state");
    if (!state.error || !selected) selected = state.view.selected;
    paint();
    for (const [name, content] of Object.entries(state.files)) download(name, content, name.endsWith(".html") ? "text/html" : "application/json");
  };
  model.on?.("change:state", update);
  paint();
  return () => model.off?.("change:state", update);
}

export default { render };

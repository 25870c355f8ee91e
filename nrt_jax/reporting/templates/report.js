"use strict";
// Shows what the page holds: plots as they come into sight, and one sample at a time.
const byId = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ---- Plots.
function draw(box) {
  const ink = css("--ink"), rule = css("--rule");
  const lines = {domainColor: rule, tickColor: rule, gridColor: rule, gridOpacity: 0.5};
  const axis = {labelColor: ink, titleColor: ink, ...lines};
  const config = {background: null, view: {stroke: null}, axis, font: "system-ui, sans-serif"};
  const spec = JSON.parse(box.nextElementSibling.textContent);
  // ast: expressions are interpreted, since the page forbids to evaluate text as a program.
  const how = {mode: "vega-lite", actions: false, renderer: "svg", ast: true};
  vegaEmbed(box, spec, {...how, config, tooltip: {theme: dark() ? "dark" : "light"}});
}
const seen = new Set();
const inSight = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting && !seen.has(entry.target)) {
      seen.add(entry.target);
      draw(entry.target);
    }
  }
}, {rootMargin: "200px"});
document.querySelectorAll(".chart").forEach((box) => inSight.observe(box));

// ---- Light and dark: the system's choice until the button is used.
const system = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
function repaint() {
  seen.forEach(draw);
  if (byId("browser")) overview();
}
byId("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  repaint();
});
system.addEventListener("change", repaint);

// ---- Samples. Their lines are parsed when they are shown.
let index, lines, run = 0, at = 0, place = 0;
const first = [];  // run -> step -> line of its first sample

function sample(ofRun, step, number) {
  return JSON.parse(lines[first[ofRun][step] + Math.min(number, index.runs[ofRun].steps[step][1] - 1)]);
}
const fixed = (x, digits) => x.toFixed(digits).replace(/^-(?=.*[1-9])/, "−").replace("-", "");
const signed = (x, digits) => x < 0 ? fixed(x, digits) : `+${x.toFixed(digits)}`;
const level = (x, shades) => shades.filter((least) => Math.abs(x) >= least).length;
const shade = (x, shades) => level(x, shades) ? (x < 0 ? "n" : "p") + level(x, shades) : "";
const moved = (one, t) => one.m === undefined ? null : one.m[Math.floor(t / one.e)] ?? null;
const known = (values, i) => values?.[i] ?? null;  // a number that was not finite is null, as one that is absent
const gained = (one, i) => known(one.c, i) === null || known(one.b, i) === null ? null : one.c[i] - one.b[i];

function saysTrace(one, t) {
  const nats = moved(one, t);
  if (nats === null) return "not measured";
  const from = Math.floor(t / one.e) * one.e, to = Math.min(from + one.e, one.t.length);
  const who = to - from > 1 ? `tokens ${from + 1} to ${to} together` : `token ${t + 1}`;
  return `${signed(nats, 3)} nats of log p(answer), ${who} of ${one.t.length} of the trace`;
}
function saysAnswer(one, i) {
  const [behind, without] = [known(one.c, i), known(one.b, i)];
  if (behind === null) return "not scored";
  const here = `${behind.toFixed(3)} behind the trace`;
  if (without === null) return `probability ${here}`;
  return `probability ${without.toFixed(3)} behind none, ${here} (${signed(gained(one, i), 3)})`;
}
function fill(box, pieces, value, shades, says) {
  box.replaceChildren(...pieces.map((piece, i) => {
    const token = document.createElement("span"), x = value(i);
    token.className = x === null ? "tok unknown" : `tok ${shade(x, shades)}`;
    token.textContent = piece.replace(/\n/g, "⏎\n");
    token.setAttribute("role", "listitem");
    token.setAttribute("aria-label", `${piece.trim() || "white space"}: ${says(i)}`);
    token.title = says(i);
    token.tabIndex = i ? -1 : 0;
    token.dataset.says = `“${piece.trim() || piece}”: ${says(i)}`;
    return token;
  }));
}
const element = (kind, text) => Object.assign(document.createElement(kind), {textContent: text});
function facts(one) {
  const total = (ps) => ps.reduce((sum, p) => sum + Math.log(p), 0);
  const found = [];
  if (one.r !== undefined) found.push(["reward", fixed(one.r, 3)]);
  if (one.v !== undefined) found.push(["advantage", signed(one.v, 3)]);
  if (one.c && one.b && [...one.c, ...one.b].every((p) => p > 0)) {
    const [behind, without] = [total(one.c), total(one.b)];
    const change = signed(behind - without, 2);
    found.push(["log p(answer)", `${fixed(without, 2)} without the trace, ${fixed(behind, 2)} with it (${change})`]);
  }
  found.push(["trace", `${one.t.length} tokens`]);
  byId("facts").replaceChildren(...found.map(([name, value]) => {
    const row = document.createElement("div");
    row.append(element("dt", name), element("dd", value));
    return row;
  }));
}
function numbers(one) {
  const text = (x, write) => x === null ? "" : write(x, 4);
  const rows = one.t.map((piece, t) => ["trace", piece, text(moved(one, t), signed), "", ""]);
  const behind = (ps, i) => text(known(ps, i), fixed);
  rows.push(...one.a.map((piece, i) => ["answer", piece, "", behind(one.c, i), behind(one.b, i)]));
  byId("rows").replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((cell) => element("td", cell)));
    return row;
  }));
}
// Not `disabled`, which would take the focus from a button in use.
const off = (id, isOff) => byId(id).setAttribute("aria-disabled", isOff);
function show() {
  const {steps} = index.runs[run];
  at = Math.max(0, Math.min(at, steps.length - 1));
  const [step, count] = steps[at];
  place = Math.max(0, Math.min(place, count - 1));
  const one = sample(run, at, place);
  byId("step").max = steps.length - 1;
  byId("step").value = at;
  byId("step").setAttribute("aria-valuetext", `step ${step}`);
  byId("step-shown").textContent = step;
  byId("place").textContent = `sample ${place + 1} of ${count}`;
  off("step-before", at === 0);
  off("step-after", at === steps.length - 1);
  off("before", place === 0);
  off("after", place === count - 1);
  byId("question").textContent = one.q;
  fill(byId("trace"), one.t, (t) => moved(one, t), index.nats, (t) => saysTrace(one, t));
  fill(byId("answer"), one.a, (i) => gained(one, i), index.shares, (i) => saysAnswer(one, i));
  byId("readout").textContent = "Point at a token, or go to it with the keyboard, to read its number.";
  facts(one);
  if (byId("numbers").open) numbers(one);
  overview();
}
function go(change) {
  const from = document.activeElement?.closest("#trace, #answer");
  change();
  show();
  if (from) (from.firstElementChild ?? byId("browser")).focus();  // the token that had the focus is gone
}

// ---- All steps of a run as lines of cells, at most ROWS of them.
const ROWS = 40, HIGH = 11, LEFT = 56;
let shown = [];
function overview() {
  const canvas = byId("overview"), {steps} = index.runs[run], every = Math.ceil(steps.length / ROWS);
  shown = steps.map((_, s) => s).filter((s) => s % every === 0 || s === steps.length - 1);
  const width = canvas.clientWidth, height = shown.length * HIGH, scale = devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d"), traces = shown.map((s) => sample(run, s, place));
  pen.scale(scale, scale);
  const most = Math.max(1, ...traces.map((one) => one.t.length));
  const wide = Math.min(14, (width - LEFT) / most), gap = wide > 4 ? 1 : 0;
  const names = ["--accent", "--quiet", "--cell", "--lower", "--raise"];
  const [accent, quiet, cell, lower, raise] = names.map(css);
  pen.font = "10px system-ui, sans-serif";
  pen.textAlign = "right";
  traces.forEach((one, row) => {
    const y = row * HIGH, current = shown[row] <= at && (row + 1 === shown.length || shown[row + 1] > at);
    pen.fillStyle = current ? accent : quiet;
    pen.fillText((current ? "▸ " : "") + steps[shown[row]][0], LEFT - 8, y + HIGH - 2);
    one.t.forEach((_, t) => {
      const x = moved(one, t);
      pen.fillStyle = cell;
      if (x !== null) {
        pen.fillStyle = `rgba(${x < 0 ? lower : raise}, ${0.08 + 0.92 * level(x, index.nats) / index.nats.length})`;
      }
      pen.fillRect(LEFT + t * wide, y + 1, Math.max(wide - gap, 0.5), HIGH - 2);
    });
  });
}

// ---- Keys, pointers and controls.
function walk(box, event) {
  const tokens = [...box.children], now = tokens.indexOf(document.activeElement);
  const next = {ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: tokens.length - 1}[event.key];
  if (event.key === "Escape") byId("browser").focus();
  if (next === undefined || now < 0) return;
  event.preventDefault();
  event.stopPropagation();
  const to = tokens[Math.max(0, Math.min(next, tokens.length - 1))];
  tokens[now].tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}
function start() {
  index = JSON.parse(byId("sample-index").textContent);
  lines = byId("sample-lines").textContent.split("\n");
  let line = 0;
  for (const {steps} of index.runs) {
    first.push(steps.map(([, count]) => (line += count) - count));
  }
  byId("run").addEventListener("change", (event) => {
    const step = index.runs[run].steps[at][0];
    run = Number(event.target.value);
    const after = index.runs[run].steps.findIndex(([own]) => own >= step);
    go(() => at = after < 0 ? index.runs[run].steps.length - 1 : after);
  });
  byId("step").addEventListener("input", (event) => go(() => at = Number(event.target.value)));
  byId("step-before").addEventListener("click", () => go(() => at -= 1));
  byId("step-after").addEventListener("click", () => go(() => at += 1));
  byId("before").addEventListener("click", () => go(() => place -= 1));
  byId("after").addEventListener("click", () => go(() => place += 1));
  byId("numbers").addEventListener("toggle", () => numbers(sample(run, at, place)));
  byId("overview").addEventListener("click", (event) => {
    const row = Math.floor(event.offsetY / HIGH);
    if (row < shown.length) go(() => at = shown[row]);
  });
  for (const box of [byId("trace"), byId("answer")]) {
    box.addEventListener("keydown", (event) => walk(box, event));
    for (const kind of ["focusin", "pointerover"]) {
      box.addEventListener(kind, (event) => {
        if (event.target.dataset.says) byId("readout").textContent = event.target.dataset.says;
      });
    }
  }
  byId("browser").addEventListener("keydown", (event) => {
    const inControl = ["SELECT", "INPUT"].includes(event.target.tagName) || event.target.closest(".wide");
    if (inControl || event.altKey || event.ctrlKey || event.metaKey) return;
    const act = {
      ArrowLeft: () => place -= 1, ArrowRight: () => place += 1, ArrowUp: () => at -= 1, ArrowDown: () => at += 1,
      Home: () => at = 0, End: () => at = Infinity,
    }[event.key];
    if (act) {
      event.preventDefault();
      go(act);
    }
  });
  addEventListener("resize", overview);
  show();
}
if (byId("browser")) start();

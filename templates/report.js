"use strict";
(async () => {
  const byId = (id) => document.getElementById(id);
  const root = byId("timeline");
  const say = (text) => { byId("timeline-note").textContent = text; };
  const CELL = 4;
  const MOST = 4000;
  // Of the traces of dots, these two are of operations that ended well: only they are thinned out further.
  const GOOD = 2;

  const bytesOf = (text) => {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i += 1) bytes[i] = letters.charCodeAt(i);
    return bytes;
  };

  const unpack = async (id) => {
    const packed = bytesOf(byId(id).textContent.trim());
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  };

  let data;
  let dots;
  try {
    data = JSON.parse(byId("data").textContent);
    const [library, packed] = await Promise.all([unpack("plotly"), unpack("dots")]);
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(library);
    document.head.append(script);
    dots = columns(packed, data.dots.count);
  } catch (error) {
    say(`The timeline cannot be drawn: ${error}. The tables below have its figures.`);
    return;
  }

  function columns(buffer, count) {
    const at = new Float64Array(count);
    const steps = new Int32Array(buffer, 0, count);
    let now = 0;
    for (let i = 0; i < count; i += 1) {
      now += steps[i];
      at[i] = now / 100000;
    }
    const took = new Float32Array(buffer, 4 * count, count);
    return {
      at,
      took,
      level: Float64Array.from(took, Math.log10),
      id: new Int32Array(buffer, 8 * count, count),
      number: new Int32Array(buffer, 12 * count, count),
      stream: new Uint16Array(buffer, 16 * count, count),
      kind: new Uint8Array(buffer, 18 * count, count),
      member: new Uint8Array(buffer, 19 * count, count),
      note: new Uint8Array(buffer, 20 * count, count),
    };
  }

  // -- colours

  const colour = (text) => {
    const style = getComputedStyle(document.documentElement);
    return text.replace(/var\((--[a-z-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  };
  const coloured = (value) => {
    if (typeof value === "string") return value.startsWith("var(") ? colour(value) : value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, coloured(each)]));
    }
    return value;
  };

  // -- dots

  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const names = data.figure.data.filter((trace) => trace.type === "scatter").map((trace) => trace.name);
  const levels = dots.level.reduce(([low, high], each) => [Math.min(low, each), Math.max(high, each)], [0, 1]);
  const lowest = Math.floor(levels[0] * 2) / 2 - 0.15;
  // Above the slowest there is room for what is said of the outage.
  const highest = levels[1] + 0.28 * (levels[1] - lowest);

  const firstAfter = (x) => {
    let low = 0;
    let high = dots.at.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (dots.at[middle] < x) low = middle + 1;
      else high = middle;
    }
    return low;
  };

  const told = (i, others) => {
    const took = dots.took[i];
    const note = data.dots.notes[dots.note[i]];
    const lines = [
      `<b>${names[dots.kind[i]]}</b>, operation ${dots.id[i]}`,
      `${escaped(data.dots.streams[dots.stream[i]])} through ${escaped(data.dots.members[dots.member[i]])}`,
      `ended at ${dots.at[i].toFixed(3)} s, ${took < 10 ? took.toFixed(2) : Math.round(took)} ms after it was to be sent`,
    ];
    if (note) lines.push(escaped(note.length > 90 ? `${note.slice(0, 89)}…` : note));
    if (others > 1) lines.push(`and ${others - 1} more here: zoom in to see them`);
    return lines.join("<br>");
  };

  // One dot for each cell of a few pixels: what is left out lies under what is drawn, and zooming in shows it.
  const visible = (range, width, height) => {
    const low = firstAfter(range[0]);
    const high = firstAfter(range[1] + 1e-9);
    for (let cell = CELL; ; cell += 1) {
      const traces = names.map(() => new Map());
      for (let i = low; i < high; i += 1) {
        const kind = dots.kind[i];
        const size = kind < GOOD ? cell : CELL;
        const column = Math.floor(((dots.at[i] - range[0]) / (range[1] - range[0])) * (width / size));
        const row = Math.floor(((dots.level[i] - lowest) / (highest - lowest)) * (height / size));
        const place = column * 4096 + row;
        const there = traces[kind].get(place);
        if (there) there[1] += dots.number[i];
        else traces[kind].set(place, [i, dots.number[i]]);
      }
      const good = traces.slice(0, GOOD).reduce((sum, trace) => sum + trace.size, 0);
      if (good <= MOST || cell > 16) return traces.map((trace) => [...trace.values()]);
    }
  };

  const filled = (range) => {
    const box = root.getBoundingClientRect();
    return visible(range, Math.max(box.width - 80, 100), 300).map((found) => ({
      x: found.map(([i]) => dots.at[i]),
      y: found.map(([i]) => dots.took[i]),
      text: found.map(([i, others]) => told(i, others)),
    }));
  };

  // -- drawing

  let range = data.whole.slice();
  const narrow = () => root.clientWidth < 560;

  const figure = () => {
    const { data: traces, layout } = coloured(data.figure);
    const marks = filled(range);
    for (const trace of traces) {
      if (trace.type !== "scatter") continue;
      Object.assign(trace, marks[trace.meta]);
      // What did not happen needs no entry in the legend.
      trace.showlegend = dots.kind.includes(trace.meta);
    }
    layout.xaxis.range = range.slice();
    layout.yaxis.range = [lowest, highest];
    layout.uniformtext = { minsize: 9, mode: "hide" };
    layout.height = narrow() ? 620 : 580;
    if (document.documentElement.dataset.print) layout.width = 690;
    if (narrow()) {
      layout.margin = { l: 64, r: 8, t: 24, b: 40 };
      layout.font.size = 11;
      layout.legend.font = { size: 11 };
      layout.legend.y = -0.16;
      for (const each of layout.annotations) each.font.size = 10;
    }
    return { traces, layout };
  };

  const config = {
    responsive: true,
    displaylogo: false,
    doubleClick: false,
    doubleClickDelay: 500,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "resetScale2d"],
    toImageButtonOptions: { format: "svg", filename: document.title.replace(/[^\w.-]+/g, "-") },
  };

  const draw = () => {
    const { traces, layout } = figure();
    return Plotly.react(root, traces, layout, config);
  };

  let busy = false;
  const show = async (wanted) => {
    range = wanted.slice();
    busy = true;
    await draw();
    busy = false;
    root.dataset.range = range.map((each) => each.toFixed(3)).join(" ");
  };

  root.textContent = "";
  await show(range);
  root.on("plotly_relayout", (change) => {
    if (busy) return;
    const from = change["xaxis.range[0]"] ?? change["xaxis.range"]?.[0];
    const to = change["xaxis.range[1]"] ?? change["xaxis.range"]?.[1];
    if (from !== undefined && to !== undefined) show([Number(from), Number(to)]);
  });
  root.on("plotly_doubleclick", () => show(data.whole));
  byId("whole").addEventListener("click", () => show(data.whole));
  byId("focus")?.addEventListener("click", () => show(data.focus));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.print = "yes";
    for (const each of document.querySelectorAll("details.print")) each.open = true;
    draw();
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.print;
    draw();
  });
  byId("controls").hidden = false;
  root.dataset.ready = String(Math.round(performance.now()));
})();

"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const NARROW = 520; // pixels of a chart, below which its layout is the narrow one
  const CELL = 26; // pixels that a number in a heat map needs
  const PRINTED = 680; // pixels of a chart on paper
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  // Colours that stand for a role are the style sheet's, light or dark.
  const themed = (value, style) => {
    if (typeof value === "string") {
      const role = /^var\((--[a-z]+)\)$/.exec(value);
      return role ? style.getPropertyValue(role[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((v) => themed(v, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v, style)]));
    return value;
  };

  const ruler = document.createElement("canvas").getContext("2d");
  const widthOf = (html, font) => {
    ruler.font = font;
    return ruler.measureText(html.replace(/<[^>]*>/g, "").replace(/&[a-z]+;/g, "x")).width;
  };

  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

  // Names beside points, each where it covers no mark and no other name; without room, none.
  const placed = (div, labels, ink, paper) => {
    const { xaxis, yaxis } = div._fullLayout;
    const taken = [];
    for (const trace of div._fullData) {
      if (!(trace.mode || "").includes("markers") || trace.opacity < 0.6) continue;
      trace.x.forEach((x, i) => {
        const px = xaxis.d2p(x), py = yaxis.d2p(trace.y[i]), r = (trace.marker.size || 8) / 2 + 1;
        taken.push({ left: px - r, right: px + r, top: py - r, bottom: py + r });
        const half = (error, scale) => error && error.array ? Math.abs(scale.d2p(error.array[i]) - scale.d2p(0)) : 0;
        const ex = half(trace.error_x, xaxis), ey = half(trace.error_y, yaxis);
        taken.push({ left: px - ex, right: px + ex, top: py - 1, bottom: py + 1 });
        taken.push({ left: px - 1, right: px + 1, top: py - ey, bottom: py + ey });
      });
    }
    const found = [];
    for (const { x, y, text } of labels) {
      const px = xaxis.d2p(x), py = yaxis.d2p(y), w = widthOf(text, "11px system-ui, sans-serif") + 4, h = 14;
      for (const d of [9, 15, 22]) {
        const boxes = [[-w / 2, -d - h + 2], [-w / 2, d - 2], [d, -h / 2], [-d - w, -h / 2],
          [d * 0.7, -d - h / 2], [d * 0.7, d - h / 2], [-d * 0.7 - w, -d - h / 2], [-d * 0.7 - w, d - h / 2]]
          .map(([dx, dy]) => ({ left: px + dx, right: px + dx + w, top: py + dy, bottom: py + dy + h }))
          .filter((box) => box.left >= 0 && box.right <= xaxis._length && box.top >= 0 && box.bottom <= yaxis._length)
          .filter((box) => !taken.some((other) => meet(box, other)));
        if (!boxes.length) continue;
        const box = boxes[0];
        taken.push(box);
        found.push({
          x, y, text, showarrow: false, font: { size: 11, color: ink }, bgcolor: `${paper}b0`, xanchor: "center", yanchor: "middle",
          xshift: (box.left + box.right) / 2 - px, yshift: py - (box.top + box.bottom) / 2,
        });
        break;
      }
    }
    return found;
  };

  // Of the texts below a heat map's columns as many as there is room for; numbers evenly.
  const thinned = (axis, room) => {
    const step = room / axis.tickvals.length;
    const width = (text) => widthOf(text, "12px system-ui, sans-serif") + 6;
    const isNumber = (text) => /^[0-9]+$/.test(text);
    const widest = Math.max(...axis.ticktext.filter(isNumber).map(width), 0);
    const every = [1, 2, 5, 10, 20, 50].find((n) => n * step >= widest) || 100;
    let free = -Infinity;
    const kept = axis.tickvals.map((_, i) => i).filter((i) => {
      const half = width(axis.ticktext[i]) / 2;
      if (isNumber(axis.ticktext[i]) && axis.ticktext[i] % every) return false;
      if (step * i - half < free) return false;
      free = step * i + half;
      return true;
    });
    const texts = kept.map((i) => axis.ticktext[i]);
    return { ...axis, tickvals: kept.map((i) => axis.tickvals[i]), ticktext: texts, tickangle: 0 };
  };

  const merged = (layout, more) => {
    const result = { ...layout };
    for (const [key, value] of Object.entries(more))
      result[key] = value && typeof value === "object" && !Array.isArray(value) ? { ...layout[key], ...value } : value;
    return result;
  };

  const draw = async (chart, width) => {
    const div = document.getElementById(chart.id);
    const style = getComputedStyle(document.documentElement);
    const room = width || div.clientWidth;
    const narrow = room < NARROW;
    const layout = themed(narrow ? merged(chart.layout, chart.narrow) : chart.layout, style);
    const data = themed(chart.data, style);
    for (const trace of data) {
      if (trace.type === "heatmap" && (room - 90) / trace.x.length < CELL) delete trace.texttemplate;
    }
    if (layout.xaxis.tickvals) layout.xaxis = thinned(layout.xaxis, room - 110);
    layout.width = room;
    const options = { displayModeBar: false, displaylogo: false, responsive: false, showLink: false, scrollZoom: false };
    await Plotly.react(div, data, layout, options);
    if (chart.labels.length) {
      const names = placed(div, chart.labels, ...themed(["var(--ink)", "var(--paper)"], style));
      await Plotly.relayout(div, { annotations: [...(layout.annotations || []), ...names] });
    }
  };

  const drawAll = async (width) => {
    for (const chart of charts) await draw(chart, width && Math.min(width, PRINTED));
    document.documentElement.dataset.drawn = charts.length;
  };

  const seen = new Map();
  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const width = target.clientWidth;
      if (width && seen.get(target.id) !== width) {
        seen.set(target.id, width);
        draw(charts.find((chart) => chart.id === target.id));
      }
    }
  });
  drawAll().then(() => {
    for (const { id } of charts) {
      const div = document.getElementById(id);
      seen.set(id, div.clientWidth);
      watch.observe(div);
    }
  });
  dark.addEventListener("change", () => drawAll());
  window.addEventListener("beforeprint", () => drawAll(PRINTED));
  window.addEventListener("afterprint", () => drawAll());
})();

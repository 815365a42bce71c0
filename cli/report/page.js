"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const groups = 6;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const drawn = [];

  const significant = (v, digits) => {
    if (v === 0) return "0";
    const size = Math.abs(v);
    if (size < 1e-3 || size >= 1e9) return v.toExponential(Math.min(2, digits - 1));
    return String(Number(v.toPrecision(digits)));
  };
  const grouped = (v) => Math.round(v).toLocaleString("en-US");
  const formats = {
    number: (v) => (Math.abs(v) >= 1e4 ? grouped(v) : significant(v, 4)),
    percent: (v) => `${significant(100 * v, 4)} %`,
    count: grouped,
    exponent: (v) => (v === 0 ? "0" : v.toExponential(2)),
  };
  const compact = (v) => {
    for (const [size, sign] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(v) >= size) return significant(v / size, 4) + sign;
    return significant(v, 4);
  };
  // The number of decimals that distinguishes ticks `step` apart (0: uneven).
  const places = (step) => {
    let count = 0;
    while (count < 6 && Math.abs(step * 10 ** count - Math.round(step * 10 ** count)) > 1e-6) count++;
    return count;
  };
  const axisFormats = {
    number: (v, step) => (step && Math.abs(v) < 1e3 && step > 1e-4 ? v.toFixed(places(step)) : compact(v)),
    percent: (v, step) => `${step ? (100 * v).toFixed(places(100 * step)) : significant(100 * v, 3)}%`,
    count: compact,
    exponent: (v) => (v === 0 ? "0" : v.toExponential(1).replace(".0", "")),
  };
  // The unit of times, chosen by the last one.
  const clock = (seconds) =>
    seconds < 180 ? [1, "s"] : seconds < 3 * 3600 ? [60, "min"] : [3600, "h"];

  function draw(host, readout, chart, log) {
    const [unit, unitName] = chart.xKind === "time" ? clock(chart.x[chart.x.length - 1]) : [1, ""];
    const data = [chart.x.map((v) => v / unit)];
    const series = [{}];
    const hasBars = chart.series.some((s) => s.bars);
    const bands = [];
    const rooted = (ys) => (chart.root ? ys.map(Math.sqrt) : ys);
    const positive = (ys) => (log && ys ? ys.map((v) => (v > 0 ? v : null)) : ys);
    chart.series.forEach((s) => {
      const stroke = colour(`--s${s.group % groups}`);
      const dash = s.group >= groups ? [6, 4] : undefined;
      const marks = { show: chart.points, size: 5, fill: stroke, stroke };
      const edge = { stroke: "rgba(0,0,0,0)", width: 0, points: { show: false }, spanGaps: true };
      if (s.low && s.high) {
        bands.push({ series: [series.length + 1, series.length], fill: stroke + "30" });
        series.push(edge, { ...edge });
        data.push(positive(s.low), positive(s.high));
      }
      const line = { stroke, width: 1.6, dash, points: marks, spanGaps: true };
      if (s.bars) {
        line.paths = uPlot.paths.bars({ size: [0.86, 48] });
        line.fill = stroke + "b0";
        line.width = 0;
        line.points = { show: false };
      }
      series.push(line);
      data.push(rooted(positive(s.y)));
    });

    const text = colour("--soft");
    const grid = { stroke: colour("--grid"), width: 1 };
    const axis = { stroke: text, grid, ticks: { ...grid, size: 4 }, font: "11px system-ui, sans-serif", gap: 4 };
    const half = chart.xKind === "distance" ? (chart.x[1] - chart.x[0]) / 2 : 0;
    const formatX = (v) => {
      if (chart.xKind === "class") return chart.names[v] ?? "";
      if (chart.xKind === "times drawn") return `drawn ${grouped(v)} times`;
      if (chart.xKind === "distance") return `distance ${(v - half).toFixed(3)} to ${(v + half).toFixed(3)}`;
      if (chart.xKind === "time") return `${significant(v, 4)} ${unitName}`;
      return `${grouped(v)} samples`;
    };
    const format = formats[chart.yFormat];
    const showReadout = (u) => {
      const at = u && u.cursor.idx != null ? u.cursor.idx : null;
      readout.replaceChildren();
      if (at != null) {
        const where = document.createElement("b");
        where.textContent = formatX(u.data[0][at]);
        readout.append(where);
      }
      chart.series.forEach((s) => {
        const item = document.createElement("span");
        const swatch = document.createElement("span");
        swatch.className = `swatch g${s.group % groups}`;
        item.append(swatch, `${s.label} `);
        if (!hasBars || at != null) {
          const place = at ?? s.y.findLastIndex((v) => v != null);
          const value = document.createElement("b");
          value.textContent = s.y[place] == null ? "–" : format(s.y[place]);
          item.append(value);
          if (chart.whole && s.y[place] != null) item.append(` (${formats.percent(s.y[place] / chart.whole)})`);
          if (s.low && s.low[place] != null && s.high[place] != null) {
            const [low, high] = [format(s.low[place]), format(s.high[place])];
            if (low !== high) item.append(` (${low} to ${high})`);
          }
        }
        readout.append(item);
      });
    };
    // Values of all frames fit, so that the axis stays while the slider moves.
    const highest = Math.max(...rooted(chart.frames.flatMap((frame) => frame.y)));
    const barsFromZero = (u, low, high) => [0, Math.max(high, highest) * 1.06 || 1];
    const xRange = (u, low, high) => {
      if (chart.xKind === "distance") return [0, 1];
      if (hasBars) return [low - (high - low) * 0.02 - 0.5, high + (high - low) * 0.02 + 0.5];
      return low === high ? [0, 2 * high || 1] : [low, high];
    };
    // Shares stay within 0 and 100 %; a constant value lies in the middle of the axis, or 0 at its end.
    const yRange = (u, least, most) => {
      if (least == null) return [0, 1];
      const isShare = chart.yFormat === "percent";
      const around = isShare ? 0.05 : 0.1 * Math.abs(most) || 1;
      const [low, high] = least < most ? uPlot.rangeNum(least, most, 0.1, true) : [least - around, most + around];
      return [least < 0 ? low : Math.max(0, low), isShare && most <= 1 ? Math.min(1, high) : high];
    };
    // Round numbers whose square roots are some distance apart.
    const rootTicks = (u, axis, low, high) => {
      const ticks = [0];
      for (let power = 1; power <= high ** 2; power *= 10)
        for (const tick of [1, 2, 5].map((mantissa) => Math.sqrt(mantissa * power)))
          if (tick <= high && tick - ticks[ticks.length - 1] > high / 7) ticks.push(tick);
      return ticks;
    };
    const logRange = (u, least, most) => {
      const margin = most > 1.02 * least ? 1.15 : 1.3;
      return least > 0 ? [least / margin, most * margin] : [0.1, 1];
    };
    // Powers of ten, at most nine of them; on an axis that spans less, three other numbers or more.
    const logTicks = (u, axis, low, high) => {
      const first = Math.floor(Math.log10(low));
      const powers = Array.from({ length: Math.ceil(Math.log10(high)) - first + 1 }, (_, place) => first + place);
      for (const mantissas of [[1], [1, 3], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]]) {
        const all = powers.flatMap((power) => mantissas.map((mantissa) => Number(`${mantissa}e${power}`)));
        const ticks = all.filter((v) => low <= v && v <= high);
        if (ticks.length > 2) return ticks.filter((_, place) => place % Math.ceil(ticks.length / 9) === 0);
      }
      return [low * 1.05, Math.sqrt(low * high), high / 1.05].map((v) => Number(v.toPrecision(3)));
    };
    const u = new uPlot(
      {
        width: Math.max(120, host.clientWidth),
        height: 190,
        padding: [8, 10, 0, 0],
        legend: { show: false },
        cursor: {
          y: false,
          points: { size: 7 },
          sync: chart.xKind === "samples" ? { key: "samples", setSeries: false, scales: ["x", null] } : undefined,
        },
        scales: {
          x: { time: false, range: xRange },
          y: hasBars ? { range: barsFromZero } : log ? { distr: 3, range: logRange } : { range: yRange },
        },
        axes: [
          {
            ...axis,
            size: 26,
            space: 60,
            incrs: chart.xKind === "times drawn" || chart.xKind === "class" ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000] : undefined,
            values: (u, ticks) => ticks.map((v) => (v == null ? "" : unitName ? `${compact(v)} ${unitName}` : compact(v))),
          },
          {
            ...axis,
            space: 32,
            size: (u, labels) => 14 + 6.4 * Math.max(2, ...(labels ?? []).map((label) => (label ?? "").length)),
            ...(log || chart.root ? { splits: log ? logTicks : rootTicks, filter: (u, ticks) => ticks } : {}),
            values: (u, ticks, _axis, _space, step) =>
              ticks.map((v) => (v == null ? "" : axisFormats[chart.yFormat](chart.root ? v * v : v, log ? 0 : step))),
          },
        ],
        series,
        bands,
        hooks: { setCursor: [showReadout], ready: [() => showReadout(null)] },
      },
      data,
      host,
    );
    return u;
  }

  function initCard(card) {
    const host = card.querySelector(".chart");
    const readout = card.querySelector(".readout");
    const chart = charts[Number(host.dataset.chart)];
    const state = { log: chart.log, plot: null, width: 0 };
    const redraw = () => {
      if (state.plot) state.plot.destroy();
      state.width = host.clientWidth;
      state.plot = draw(host, readout, chart, state.log);
    };
    const values = chart.series.flatMap((s) => s.y.filter((v) => v != null));
    const button = card.querySelector("button.log");
    if (button && !chart.series.some((s) => s.bars) && values.some((v) => v > 0) && values.every((v) => v >= 0)) {
      button.hidden = false;
      button.setAttribute("aria-pressed", String(state.log));
      button.addEventListener("click", () => {
        state.log = !state.log;
        button.setAttribute("aria-pressed", String(state.log));
        redraw();
      });
    }
    const slider = card.querySelector("input.frames");
    if (slider) {
      slider.hidden = false;
      slider.addEventListener("input", () => {
        const frame = chart.frames[slider.valueAsNumber];
        Object.assign(chart.series[chart.series.length - 1], frame);
        slider.setAttribute("aria-valuetext", frame.label);
        redraw();
      });
    }
    redraw();
    new ResizeObserver(() => {
      if (host.clientWidth && host.clientWidth !== state.width) {
        state.width = host.clientWidth;
        state.plot.setSize({ width: state.width, height: 190 });
      }
    }).observe(host);
    drawn.push(redraw);
  }

  document.querySelectorAll(".card.has-chart").forEach(initCard);
  const redrawAll = () => drawn.forEach((redraw) => redraw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
  matchMedia("print").addEventListener("change", redrawAll);

  // Tooltips of images: by pointer, by touch, and by keyboard, where arrow keys move within a card. Without this script
  // the title attribute shows them to a mouse alone.
  const tip = document.getElementById("tip");
  const hideTip = () => (tip.hidden = true);
  const showTip = (tile) => {
    tip.textContent = tile.dataset.tip;
    tip.hidden = false;
    const box = tile.getBoundingClientRect();
    const above = box.top - tip.offsetHeight - 6;
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 0 ? above : box.bottom + 6}px`;
  };
  const shownTile = () => document.activeElement?.closest?.(".tile");
  document.querySelectorAll(".strips, .clusters").forEach((card) => {
    const rows = [...card.querySelectorAll(".tiles")].map((row) => [...row.querySelectorAll(".tile")]);
    rows.flat().forEach((tile, place) => {
      tile.dataset.tip = tile.title;
      tile.removeAttribute("title");
      tile.tabIndex = place === 0 ? 0 : -1; // one stop of the Tab key per card
      tile.addEventListener("pointerenter", () => showTip(tile));
      tile.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hideTip());
      tile.addEventListener("focus", () => showTip(tile));
      tile.addEventListener("blur", hideTip);
    });
    card.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      const move = moves[event.key];
      const row = rows.findIndex((tiles) => tiles.includes(shownTile()));
      if (!move || row < 0) return;
      event.preventDefault();
      const next = rows[row + move[0]];
      const target = next?.[Math.min(rows[row].indexOf(shownTile()), next.length - 1) + move[1]];
      if (!target) return;
      shownTile().tabIndex = -1;
      target.tabIndex = 0;
      target.focus();
    });
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
  document.addEventListener("pointerdown", (event) => event.target.closest(".tile") || hideTip());
  document.addEventListener("scroll", () => (shownTile() && !tip.hidden ? showTip(shownTile()) : hideTip()), { passive: true });

  document.querySelectorAll("button.copy").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copies);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = "selected";
      }
      setTimeout(() => (button.textContent = "copy"), 1500);
    });
  });
})();

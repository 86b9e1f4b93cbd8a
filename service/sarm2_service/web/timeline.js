// One canvas, three lanes over one time axis: the progress curve with its interval, the primitive strip, the
// experts. Frames that share a pixel column are drawn as one (extremes kept), so an hour costs what a minute does.

const GAP_S = 1; // a hole in `seq` longer than this is left open instead of being bridged
const SPANS_S = [5, 8, 12, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900, 1800, 3600];
const TICKS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200];

const LAYOUTS = {
  small: { curve: 104, strip: 12, heatRow: 3, gap: 7, left: 30, right: 6, axis: 16, font: 10 },
  large: { curve: 330, strip: 28, heatRow: 12, gap: 12, left: 40, right: 62, axis: 20, font: 12 },
};

function layoutOf(size, experts, width) {
  const base = LAYOUTS[size];
  const layout = width < 420 ? { ...base, left: 30, curve: Math.min(base.curve, 190) } : { ...base };
  layout.width = width;
  layout.top = 10;
  layout.stripTop = layout.top + layout.curve + layout.gap;
  layout.heatTop = layout.stripTop + layout.strip + layout.gap;
  layout.heat = layout.heatRow * experts;
  layout.height = layout.heatTop + layout.heat + layout.axis;
  layout.plot = Math.max(10, width - layout.left - layout.right);
  return layout;
}

export class Timeline {
  constructor(canvas, size) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.size = size;
    this.cursor = null; // index of the frame under the pointer, or null
    this.layout = null;
  }

  /** Draw `episode` into the canvas at its present CSS width. */
  draw(episode, palette, theme) {
    const width = Math.max(120, Math.floor(this.canvas.parentElement.clientWidth));
    const layout = layoutOf(this.size, episode.expertCount || 10, width);
    this.layout = layout;
    this.fit(layout);
    const g = this.context;
    g.clearRect(0, 0, layout.width, layout.height);
    g.font = `${layout.font}px ${theme.font}`;
    this.setSpan(episode);
    this.axes(episode, theme);
    if (episode.count === 0) return;
    const columns = this.columns(episode);
    this.curve(episode, columns, theme);
    this.strip(episode, palette, theme);
    this.heat(episode, columns, theme);
    if (this.size === "large") this.expertBars(episode, theme);
    if (this.cursor !== null) this.crosshair(episode, theme);
  }

  fit(layout) {
    const scale = Math.min(3, window.devicePixelRatio || 1);
    const [width, height] = [Math.round(layout.width * scale), Math.round(layout.height * scale)];
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.canvas.style.width = `${layout.width}px`;
      this.canvas.style.height = `${layout.height}px`;
    }
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
  }

  /** A live axis ends at a round time ahead of the newest frame, so that it does not rescale at every score. */
  setSpan(episode) {
    this.first = episode.count ? episode.seq[0] : 0;
    const last = episode.count ? episode.seq[episode.count - 1] + 1 : 0;
    const span_s = (last - this.first) / episode.fps;
    const shown_s = episode.live || span_s === 0
      ? SPANS_S.find((s) => s >= span_s * 1.02) ?? Math.ceil(span_s / 3600) * 3600
      : span_s;
    this.span = Math.max(1, shown_s * episode.fps);
  }

  x(seq) { return this.layout.left + ((seq - this.first) / this.span) * this.layout.plot; }
  y(progress) { return this.layout.top + (1 - progress) * this.layout.curve; }

  /** The index of the frame nearest to canvas coordinate `x`. */
  indexAt(x, episode) {
    if (!this.layout || episode.count === 0) return null;
    return episode.nearest(this.first + ((x - this.layout.left) / this.layout.plot) * this.span - 0.5);
  }

  axes(episode, theme) {
    const g = this.context;
    const { left, plot, top, curve, height, axis } = this.layout;
    g.strokeStyle = theme.line;
    g.fillStyle = theme.quiet;
    g.lineWidth = 1;
    g.textAlign = "right";
    g.textBaseline = "middle";
    for (const level of this.size === "large" ? [0, 0.25, 0.5, 0.75, 1] : [0, 0.5, 1]) {
      const y = Math.round(this.y(level)) + 0.5;
      g.beginPath();
      g.moveTo(left, y);
      g.lineTo(left + plot, y);
      g.stroke();
      g.fillText(String(level * 100), left - 6, y);
    }
    const span_s = this.span / episode.fps;
    const step = TICKS_S.find((s) => (s / span_s) * plot >= 46) ?? 3600;
    g.textAlign = "center";
    g.textBaseline = "bottom";
    for (let t = 0; t <= span_s + 1e-9; t += step) {
      const x = left + (t / span_s) * plot;
      if (x > left + plot - 6 && t > 0) break;
      g.fillText(t === 0 ? "0 s" : String(Math.round(t + this.first / episode.fps)), x, height);
      g.globalAlpha = 0.5;
      g.beginPath();
      g.moveTo(Math.round(x) + 0.5, top);
      g.lineTo(Math.round(x) + 0.5, height - axis);
      g.stroke();
      g.globalAlpha = 1;
    }
  }

  /** Frames grouped by pixel column: [{x, i, j, low, high, min, max}], i to j inclusive. */
  columns(episode) {
    const columns = [];
    const { seq, low, high, progress } = episode;
    let column = null;
    for (let i = 0; i < episode.count; i += 1) {
      const x = this.x(seq[i] + 0.5);
      if (column === null || x - column.x >= 1) {
        column = { x, i, j: i, low: low[i], high: high[i], min: progress[i], max: progress[i] };
        columns.push(column);
        continue;
      }
      column.j = i;
      column.low = Math.min(column.low, low[i]);
      column.high = Math.max(column.high, high[i]);
      column.min = Math.min(column.min, progress[i]);
      column.max = Math.max(column.max, progress[i]);
    }
    return columns;
  }

  runs(episode, columns) {
    const runs = [];
    let run = [];
    columns.forEach((column, k) => {
      const before = k > 0 ? columns[k - 1] : null;
      if (before && episode.seq[column.i] - episode.seq[before.j] > GAP_S * episode.fps) {
        runs.push(run);
        run = [];
      }
      run.push(column);
    });
    runs.push(run);
    return runs;
  }

  curve(episode, columns, theme) {
    const g = this.context;
    const runs = this.runs(episode, columns);
    g.fillStyle = theme.band;
    for (const run of runs) {
      g.beginPath();
      run.forEach((c) => g.lineTo(c.x, this.y(c.high)));
      for (let k = run.length - 1; k >= 0; k -= 1) g.lineTo(run[k].x, this.y(run[k].low));
      g.fill();
    }
    this.fallWashes(episode, theme);
    g.strokeStyle = theme.curve;
    g.lineWidth = this.size === "large" ? 2.25 : 1.75;
    g.lineJoin = "round";
    g.lineCap = "round";
    for (const run of runs) {
      g.beginPath();
      for (const c of run) {
        if (c.i === c.j) {
          g.lineTo(c.x, this.y(episode.progress[c.i]));
          continue;
        }
        g.lineTo(c.x, this.y(episode.progress[c.i]));
        g.lineTo(c.x, this.y(c.max));
        g.lineTo(c.x, this.y(c.min));
        g.lineTo(c.x, this.y(episode.progress[c.j]));
      }
      g.stroke();
    }
    this.fallMarks(episode, theme);
    this.head(episode, theme);
  }

  /** A dot at the newest score, so that a live curve has a visible end. */
  head(episode, theme) {
    const g = this.context;
    const i = episode.count - 1;
    g.fillStyle = theme.curve;
    g.strokeStyle = theme.panel;
    g.lineWidth = 2;
    g.beginPath();
    g.arc(this.x(episode.seq[i] + 0.5), this.y(episode.progress[i]), this.size === "large" ? 5 : 4, 0, 2 * Math.PI);
    g.fill();
    g.stroke();
  }

  fallWashes(episode, theme) {
    const g = this.context;
    g.fillStyle = theme.fallWash;
    for (const fall of episode.falls) {
      const x = this.x(episode.seq[fall.from] + 0.5);
      const width = Math.max(2, this.x(episode.seq[fall.to] + 0.5) - x);
      g.fillRect(x, this.layout.top, width, this.layout.curve);
    }
  }

  fallMarks(episode, theme) {
    const g = this.context;
    const large = this.size === "large";
    for (const fall of episode.falls) {
      g.strokeStyle = theme.fall;
      g.fillStyle = theme.fall;
      g.lineWidth = large ? 3 : 2.25;
      g.beginPath();
      for (let i = fall.from; i <= fall.to; i += 1) g.lineTo(this.x(episode.seq[i] + 0.5), this.y(episode.progress[i]));
      g.stroke();
      const x = this.x(episode.seq[fall.to] + 0.5);
      const size = large ? 5 : 4;
      const y = Math.min(this.y(episode.progress[fall.to]) + 4, this.layout.top + this.layout.curve - size);
      g.beginPath();
      g.moveTo(x - size, y);
      g.lineTo(x + size, y);
      g.lineTo(x, y + 1.6 * size);
      g.fill();
      if (!large) continue;
      g.textBaseline = "middle";
      g.textAlign = x > this.layout.left + this.layout.plot - 50 ? "right" : "left";
      g.fillText(`−${Math.round(fall.depth * 100)}`, x + (g.textAlign === "left" ? 9 : -9), y + 4);
    }
  }

  /** Runs of frames with one primitive and one certainty: [{i, j, primitive, uncertain}], holes not bridged. */
  segments(episode) {
    const segments = [];
    let open = null;
    for (let i = 0; i < episode.count; i += 1) {
      const hole = open && episode.seq[i] - episode.seq[open.j] > GAP_S * episode.fps;
      if (open && !hole && open.primitive === episode.primitive[i] && open.uncertain === episode.uncertain[i]) {
        open.j = i;
        continue;
      }
      if (open && !hole) open.end = episode.seq[i];
      open = { i, j: i, primitive: episode.primitive[i], uncertain: episode.uncertain[i], end: null };
      segments.push(open);
    }
    return segments;
  }

  strip(episode, palette, theme) {
    const g = this.context;
    const { stripTop, strip } = this.layout;
    for (const segment of this.segments(episode)) {
      const x = this.x(episode.seq[segment.i]);
      const width = Math.max(0.75, this.x(segment.end ?? episode.seq[segment.j] + 1) - x);
      g.fillStyle = palette.fill(segment.primitive, theme.dark);
      g.globalAlpha = segment.uncertain ? 0.35 : 1;
      g.fillRect(x, stripTop, width, strip);
      g.globalAlpha = 1;
      if (segment.uncertain) this.hatch(x, stripTop, width, strip, theme);
      else if (this.size === "large") this.stripLabel(segment.primitive, x, width, palette, theme);
    }
  }

  hatch(x, y, width, height, theme) {
    const g = this.context;
    g.save();
    g.beginPath();
    g.rect(x, y, width, height);
    g.clip();
    g.strokeStyle = theme.text;
    g.globalAlpha = 0.75;
    g.lineWidth = 1;
    g.beginPath();
    const step = 5;
    // Anchored to the canvas, not to the segment, so that neighbours join into one hatching.
    for (let start = Math.floor((x - height) / step) * step; start < x + width; start += step) {
      g.moveTo(start, y + height);
      g.lineTo(start + height, y);
    }
    g.stroke();
    g.restore();
  }

  stripLabel(primitive, x, width, palette, theme) {
    const g = this.context;
    const name = palette.primitives[primitive];
    if (!name || g.measureText(name).width > width - 8) return;
    g.fillStyle = palette.ink(primitive, theme.dark);
    g.textAlign = "left";
    g.textBaseline = "middle";
    g.fillText(name, x + 5, this.layout.stripTop + this.layout.strip / 2 + 0.5);
  }

  /** The experts as an image of one pixel per column and expert, scaled without smoothing. */
  heat(episode, columns, theme) {
    const { heatTop, heat, left, plot } = this.layout;
    const rows = episode.expertCount;
    const g = this.context;
    g.fillStyle = theme.heatGround;
    g.fillRect(left, heatTop, plot, heat);
    if (!rows) return;
    const width = Math.ceil(this.x(episode.seq[episode.count - 1] + 1) - left);
    const image = new ImageData(Math.max(1, width), rows);
    const [red, green, blue] = theme.heatRgb;
    columns.forEach((column, k) => {
      const weights = this.meanWeights(episode, column, rows);
      const next = columns[k + 1];
      const hole = !next || episode.seq[next.i] - episode.seq[column.j] > GAP_S * episode.fps;
      const from = Math.max(0, Math.round(this.x(episode.seq[column.i]) - left));
      const to = Math.min(image.width, Math.max(from + 1, Math.round((hole ? this.x(episode.seq[column.j] + 1) : this.x(episode.seq[next.i])) - left)));
      for (let e = 0; e < rows; e += 1) {
        if (!(weights[e] > 0)) continue;
        for (let x = from; x < to; x += 1) {
          image.data.set([red, green, blue, Math.round(255 * Math.min(1, 0.12 + 0.88 * weights[e]))], 4 * (e * image.width + x));
        }
      }
    });
    const scratch = (this.scratch ??= document.createElement("canvas"));
    scratch.width = image.width;
    scratch.height = rows;
    scratch.getContext("2d").putImageData(image, 0, 0);
    g.imageSmoothingEnabled = false;
    g.drawImage(scratch, left, heatTop, image.width, heat);
    this.heatRows(rows, theme);
  }

  meanWeights(episode, column, rows) {
    if (column.i === column.j) return episode.experts[column.i];
    const mean = new Float32Array(rows);
    for (let i = column.i; i <= column.j; i += 1) {
      for (let e = 0; e < rows; e += 1) mean[e] += (episode.experts[i][e] ?? 0) / (column.j - column.i + 1);
    }
    return mean;
  }

  heatRows(rows, theme) {
    if (this.size !== "large") return;
    const g = this.context;
    const { heatTop, heatRow, left, plot, font } = this.layout;
    g.fillStyle = theme.panel;
    for (let e = 1; e < rows; e += 1) g.fillRect(left, heatTop + e * heatRow - 0.5, plot, 1);
    g.fillStyle = theme.quiet;
    g.font = `${font - 2}px ${theme.font}`;
    g.textAlign = "right";
    g.textBaseline = "middle";
    for (let e = 0; e < rows; e += 1) g.fillText(`E${e}`, left - 6, heatTop + (e + 0.5) * heatRow);
    g.font = `${font}px ${theme.font}`;
  }

  /** Right of the heat lane: the weights of the frame under the cursor, or of the newest. */
  expertBars(episode, theme) {
    const g = this.context;
    const { heatTop, heatRow, left, plot, right, font } = this.layout;
    const weights = episode.experts[this.cursor ?? episode.count - 1] ?? [];
    const x = left + plot + 6;
    g.textAlign = "left";
    g.textBaseline = "middle";
    g.font = `${font - 2}px ${theme.font}`;
    weights.forEach((weight, e) => {
      if (!(weight > 0)) return;
      const y = heatTop + e * heatRow;
      const width = (right - 34) * weight;
      g.fillStyle = `rgb(${theme.heatRgb.join(" ")})`;
      g.fillRect(x, y + 1.5, Math.max(1.5, width), heatRow - 3);
      g.fillStyle = theme.text;
      g.fillText(weight.toFixed(2).replace(/^0/, ""), x + width + 4, y + heatRow / 2);
    });
  }

  crosshair(episode, theme) {
    const g = this.context;
    const { top, height, axis } = this.layout;
    const i = Math.min(this.cursor, episode.count - 1);
    const x = Math.round(this.x(episode.seq[i] + 0.5)) + 0.5;
    g.strokeStyle = theme.text;
    g.lineWidth = 1;
    g.globalAlpha = 0.7;
    g.beginPath();
    g.moveTo(x, top);
    g.lineTo(x, height - axis);
    g.stroke();
    g.globalAlpha = 1;
    g.fillStyle = theme.text;
    g.beginPath();
    g.arc(x, this.y(episode.progress[i]), 3.5, 0, 2 * Math.PI);
    g.fill();
  }
}

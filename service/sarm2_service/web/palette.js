// Colours: one hue per primitive group, one lightness per primitive inside it. Hues from 0 to 50 are left to
// falls, so that a red mark always means a fall.

const GROUP_HUES = [240, 195, 150, 110, 78, 335, 292];

/** The colours of the current scheme, read once from the style sheet (canvas cannot use CSS variables). */
export class Theme {
  constructor() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    this.dark = matchMedia("(prefers-color-scheme: dark)").matches;
    this.text = colour("text");
    this.quiet = colour("quiet");
    this.line = colour("line");
    this.panel = colour("panel");
    this.curve = colour("curve");
    this.band = colour("band");
    this.fall = colour("fall");
    this.fallWash = colour("fall-wash");
    this.heatRgb = colour("heat-rgb").split(/[\s,]+/).map(Number);
    this.heatGround = colour("heat-ground");
    this.font = style.getPropertyValue("--sans").trim();
  }
}

/** Primitive index to colour. `groupOf[i]` is the group of primitive i, or null when it is not known. */
export class Palette {
  constructor(primitives, groupOf) {
    this.primitives = primitives;
    this.groupOf = groupOf && groupOf.length === primitives.length ? groupOf : null;
    this.members = new Map();
    for (let i = 0; i < primitives.length; i += 1) {
      const group = this.groupOf ? this.groupOf[i] : i;
      if (!this.members.has(group)) this.members.set(group, []);
      this.members.get(group).push(i);
    }
  }

  isNull(index) {
    return this.primitives[index] === "null" || index < 0;
  }

  hue(index) {
    if (!this.groupOf) return 60 + ((index * 137.508) % 290);
    return GROUP_HUES[this.groupOf[index] % GROUP_HUES.length];
  }

  /** A CSS colour for primitive `index`; null and unknown primitives are grey. */
  fill(index, dark) {
    if (this.isNull(index)) return dark ? "oklch(0.5 0.01 250)" : "oklch(0.72 0.01 250)";
    return `oklch(${this.lightness(index, dark).toFixed(3)} 0.125 ${this.hue(index).toFixed(0)})`;
  }

  lightness(index, dark) {
    const mates = this.groupOf ? this.members.get(this.groupOf[index]) : [index];
    const place = mates.length > 1 ? mates.indexOf(index) / (mates.length - 1) : 0.5;
    return (dark ? 0.64 : 0.54) + 0.22 * place;
  }

  /** The colour of text on `fill(index)`. */
  ink(index, dark) {
    const light = this.isNull(index) ? !dark : this.lightness(index, dark) > 0.62;
    return light ? "#0b0f14" : "#ffffff";
  }
}

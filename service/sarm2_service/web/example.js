// An invented episode for the empty page, drawn by the same code as a real one.

import { Episode } from "./episode.js";
import { Palette } from "./palette.js";
import { Timeline } from "./timeline.js";

const STAGES = [["reach", 26], ["grasp", 9], ["lift", 12], ["transport", 17], ["reach", 16], ["grasp", 8], ["transport", 24], ["lower", 13], ["release", 8]];
const PRIMITIVES = ["reach", "grasp", "lift", "transport", "lower", "release", "null"];
const GROUPS = ["acquire", "lift", "carry", "place", "release", "other"];
const GROUP_OF = [0, 0, 1, 2, 3, 4, 5];
const DROP_AT = 64;
const SLOPE = 0.0095;

export function exampleEpisode() {
  const episode = new Episode("example");
  episode.list({ state: "ended" });
  episode.begin({ fps: 10, primitives: PRIMITIVES, groups: GROUPS, experts: 10, started_at: 0 });
  let seq = 0;
  for (const [primitive, frames] of STAGES) {
    for (let k = 0; k < frames; k += 1, seq += 1) episode.add(exampleScore(seq, primitive));
  }
  return episode;
}

function exampleScore(seq, primitive) {
  const fallen = Math.min(1, Math.max(0, (seq - DROP_AT) / 5));
  const progress = Math.min(0.98, 0.03 + SLOPE * (seq - 34 * fallen) * (1 + 0.05 * Math.sin(seq / 5)) * 1.02);
  const uncertain = seq > DROP_AT && seq < DROP_AT + 9;
  const spread = 0.04 + 0.05 * Math.sin((Math.PI * seq) / 133) + (uncertain ? 0.05 : 0);
  const experts = new Array(10).fill(0);
  const group = uncertain ? 5 : GROUP_OF[PRIMITIVES.indexOf(primitive)];
  const share = 0.62 + 0.2 * Math.sin(seq / 9);
  experts[(group * 3 + 1) % 10] = share;
  experts[(group * 7 + 4) % 10] += 1 - share;
  return {
    seq, progress, primitive, uncertain, experts, confidence: uncertain ? 0.4 : 0.93,
    interval: [Math.max(0, progress - spread), Math.min(1, progress + spread)],
  };
}

/** Draw the example into `canvas`; again on every change of width or colour scheme. */
export function drawExample(canvas, episode, theme) {
  new Timeline(canvas, "small").draw(episode, new Palette(PRIMITIVES, GROUP_OF), theme);
}

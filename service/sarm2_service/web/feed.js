// Where the numbers come from: the list of episodes (polled) and one event stream per episode that is looked at.

const LIST_EVERY_MS = 1500;
const LIST_TIMEOUT_MS = 5000;
const RETRY_MAX_MS = 8000;
// A browser keeps six HTTP/1.1 connections to one host; pictures and the list need some of them too.
const STREAMS_MAX = 4;
const TURN_MS = 4000; // with more live episodes than streams, each keeps a stream this long before the next one's turn
const SETTLED_MS = 2500; // an ended episode without a summary is complete when nothing has come for this long

/** Poll `v1/episodes`. Calls `onRows(rows)` on success and `onLink(state, text)` when the connection changes. */
export class Listing {
  constructor(onRows, onLink) {
    this.onRows = onRows;
    this.onLink = onLink;
    this.failures = 0;
  }

  async poll() {
    let wait_ms = LIST_EVERY_MS;
    try {
      this.onRows(await this.fetchRows());
      this.failures = 0;
      this.onLink("up", "connected");
    } catch (error) {
      this.failures += 1;
      wait_ms = Math.min(RETRY_MAX_MS, LIST_EVERY_MS * 1.6 ** this.failures);
      const why = error.status ? `the service answered ${error.status}` : "no connection to the service";
      this.onLink("down", `${why}, trying again`);
    }
    setTimeout(() => this.poll(), wait_ms);
  }

  async fetchRows() {
    const response = await fetch("v1/episodes", { cache: "no-store", signal: AbortSignal.timeout(LIST_TIMEOUT_MS) });
    if (!response.ok) throw Object.assign(new Error("list"), { status: response.status });
    const body = await response.json();
    return Array.isArray(body.episodes) ? body.episodes : [];
  }
}

/** One EventSource of one episode. Reconnects by itself; a refused stream is tried again with growing waits. */
class Stream {
  constructor(episode, onChange) {
    this.episode = episode;
    this.onChange = onChange;
    this.failures = 0;
    this.opened = performance.now();
    this.heard = this.opened;
    this.state = "opening";
    this.open();
  }

  open() {
    this.source = new EventSource(`v1/episodes/${encodeURIComponent(this.episode.id)}/events`);
    this.source.onopen = () => this.set("open");
    this.source.onerror = () => this.lost();
    this.on("start", (data) => this.episode.begin(data));
    this.on("score", (data) => this.episode.add(data));
    this.on("summary", (data) => this.finish(data));
  }

  on(name, use) {
    this.source.addEventListener(name, (event) => {
      this.heard = performance.now();
      this.failures = 0;
      let data;
      try {
        data = JSON.parse(event.data);
      } catch {
        return; // not ours: the next event may be
      }
      use(data);
      this.onChange(this.episode, name);
    });
  }

  finish(summary) {
    this.episode.finish(summary);
    this.close(); // nothing follows; left open, the browser would connect again and replay everything
  }

  lost() {
    if (this.state === "closed") return;
    this.set("lost");
    if (this.source.readyState !== EventSource.CLOSED) return; // the browser reconnects
    this.failures += 1;
    this.retry = setTimeout(() => this.open(), Math.min(RETRY_MAX_MS, 500 * 2 ** this.failures));
  }

  set(state) {
    this.state = state;
    this.onChange(this.episode, "link");
  }

  close() {
    clearTimeout(this.retry);
    this.source.close();
    this.state = "closed";
  }
}

/** Gives the few streams to the episodes that need them most: the enlarged one, then what is on the screen. */
export class Streams {
  constructor(onChange) {
    this.onChange = onChange;
    this.open = new Map();
    this.complete = new Set();
    this.served = new Map(); // when an episode last held a stream: who waited longest is next
  }

  state(id) {
    return this.open.get(id)?.state ?? "closed";
  }

  /** For how many milliseconds the stream of an episode has been open. */
  age(id) {
    return performance.now() - (this.open.get(id)?.opened ?? performance.now());
  }

  /** `wanted`: episodes in order of interest; `focused`: the id that never loses its stream. */
  arrange(wanted, focused) {
    const now = performance.now();
    const ids = new Set(wanted.map((episode) => episode.id));
    for (const episode of wanted) if (episode.live || !episode.start) this.complete.delete(episode.id);
    for (const [id, stream] of this.open) {
      if (!ids.has(id) || this.isComplete(stream, now)) this.drop(id, now);
    }
    const waiting = wanted
      .filter((episode) => !this.open.has(episode.id) && !this.complete.has(episode.id))
      .sort((a, b) => Number(b.id === focused) - Number(a.id === focused)
        || (this.served.get(a.id) ?? 0) - (this.served.get(b.id) ?? 0));
    for (const episode of waiting) {
      if (this.open.size >= STREAMS_MAX && !this.yieldOne(now, focused, episode.id === focused)) break;
      this.open.set(episode.id, new Stream(episode, this.onChange));
    }
  }

  isComplete(stream, now) {
    const { episode } = stream;
    if (episode.live) return false;
    const done = episode.summary !== null || now - stream.heard > SETTLED_MS;
    if (done) this.complete.add(episode.id);
    return done;
  }

  yieldOne(now, focused, urgent) {
    const candidates = [...this.open.entries()]
      .filter(([id, stream]) => id !== focused && (urgent || now - stream.opened > TURN_MS))
      .sort((a, b) => a[1].opened - b[1].opened);
    if (candidates.length === 0) return false;
    this.drop(candidates[0][0], now);
    return true;
  }

  /** The service no longer lists this episode. */
  forget(id) {
    if (this.open.has(id)) this.drop(id, 0);
    this.complete.delete(id);
    this.served.delete(id);
  }

  drop(id, now) {
    const stream = this.open.get(id);
    stream.close();
    this.open.delete(id);
    this.served.set(id, now);
    this.onChange(stream.episode, "link");
  }
}

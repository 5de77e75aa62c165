// The API of the server that this page came from. The key goes in a header, never into an address.

const ROOT = new URL("../v1/", import.meta.url);
const KEY = "cinesynth.studio.key";
const SILENCE_MS = 45_000; // a stream says something every 15 s; after three such it is taken to be dead

export const FINAL = ["completed", "failed", "deleted"];

/** A refusal, as the server worded it. `status` 0: no answer came. */
export class Refused extends Error {
  constructor(status, message, { code = "", param = "", retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }

  /** Whether the request may have been carried out all the same, or a second try may go better. */
  get unsure() {
    return this.status === 0 || this.code === "outcome_unknown" || [502, 503, 504].includes(this.status);
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: value => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** The response to a request below /v1/. Throws Refused for anything but a success, and AbortError when aborted. */
export async function ask(path, { headers = {}, ...options } = {}) {
  let response;
  try {
    response = await fetch(new URL(path, ROOT), {
      ...options,
      headers: { ...headers, Authorization: `Bearer ${key.get()}` },
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer. Is it running, and are you connected to its network?");
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  const message = error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  throw new Refused(response.status, message, { code: error?.code, param: error?.param ?? "", retryAfter });
}

export const read = async (path, options) => (await ask(path, options)).json();

let streaming = null; // whose end frees the one stream of this tab: a browser has six connections for all its tabs

/** A signal that is aborted when the tab is hidden, or shown again. */
function turned() {
  const turn = new AbortController();
  document.addEventListener("visibilitychange", () => turn.abort(), { once: true, signal: turn.signal });
  return turn;
}

/**
 * Tell of a video's state until it is final: {status, progress, position, eta_s, error}, or {lost: true} while the
 * server is not reached. While the tab is seen, one video's stream of events is read; the others, and those that have
 * no stream or no place in it, are asked for again and again.
 */
export async function follow(id, tell, signal) {
  let last = "", polling = false, wait = 500;
  while (!signal.aborted) {
    const turn = turned();
    const either = AbortSignal.any([signal, turn.signal]);
    const streams = !polling && !document.hidden && (streaming === null || streaming.aborted);
    try {
      if (!streams) {
        const response = await ask(`videos/${id}`, { signal });
        const video = await response.json();
        wait = 500;
        tell(video);
        if (FINAL.includes(video.status)) return;
        await sleep(Number(response.headers.get("openai-poll-after-ms")) || 1000, either);
        continue;
      }
      streaming = either;
      const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
      for await (const event of events(`videos/${id}/events`, headers, either)) {
        last = event.id || last;
        wait = 500;
        const state = JSON.parse(event.data);
        tell(state);
        if (FINAL.includes(state.status)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (turn.signal.aborted) continue;
      if (error.status === 401) throw error;
      if (!polling && ([404, 405].includes(error.status) || error.code === "too_many_streams")) {
        polling = true;
        continue;
      }
      if (error.status === 404) return tell({ status: "deleted" });
      tell({ lost: true });
    } finally {
      turn.abort(); // takes its listener off, and frees the stream
    }
    await sleep(wait, signal);
    wait = Math.min(wait * 2, 10_000);
  }
}

/** The events of a stream: {data, id}. EventSource would do this, but it sends no key. */
async function* events(path, headers, signal) {
  const silence = new AbortController();
  const response = await ask(path, { headers, signal: AbortSignal.any([signal, silence.signal]) });
  if (response.status === 204) throw new Refused(405, "All was told."); // the caller asks for the state itself
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", timer;
  try {
    for (;;) {
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
      const { value, done } = await reader.read();
      clearTimeout(timer);
      if (done) return;
      text += value.replaceAll("\r", "");
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const event = { data: "", id: "" };
        for (const line of text.slice(0, end).split("\n")) {
          const [, field, value] = line.match(/^([^:]*):? ?(.*)$/);
          if (field === "data") event.data += (event.data && "\n") + value;
          else if (field === "id") event.id = value;
        }
        text = text.slice(end + 2);
        if (event.data) yield event;
      }
    }
  } finally {
    clearTimeout(timer);
    silence.abort(); // closes the connection, of which a browser has few
  }
}

export const sleep = (ms, signal) => new Promise(resolve => {
  if (signal?.aborted) return resolve();
  const timer = setTimeout(resolve, ms);
  signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
});

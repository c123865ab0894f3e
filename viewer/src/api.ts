// The server as any client sees it (docs/serving.md): paths under v1, errors as OpenAI's, streams as server-sent events.

export interface Puzzle {
  task: string;
  prompt: string;
}

/** One token, with what it had read; without `step` a thread ends by it and writes nothing more. */
export interface TokenTold {
  thread: number;
  label: number;
  step: number | null;
  given: boolean;
  delta: string;
  finish_reason: string | null;
  exchanges: { thread: number; step: number; weight: number }[];
}

export interface Report {
  steps: number;
  seconds: number;
  chosen: number;
  chosen_by: string;
  threads: { label: number; tag: string | null; answer: string | null; correct: boolean | null; finish_reason: string }[];
}

export type Told = TokenTold | Report | { trace: string };

/** The server has answered, and will not do it. */
export class Refusal extends Error {
  constructor(
    message: string,
    readonly status: number,
    /** Seconds after which another try makes sense. */
    readonly retryAfter: number | null,
  ) {
    super(message);
  }
}

/** The connection could not be had, or has ended before its time. */
export class Dropped extends Error {}

const STORED = "lace-key";
/** Milliseconds for what a server answers from its memory. */
const SOON = 10_000;

export const key = {
  get: (): string => sessionStorage.getItem(STORED) ?? "",
  set: (value: string): void => sessionStorage.setItem(STORED, value),
};

async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const headers: Record<string, string> = { "Content-Type": "application/json" };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response: Response;
  try {
    response = await fetch(path, { ...init, headers });
  } catch (error) {
    if ((error as DOMException).name === "TimeoutError") throw new Dropped("the server does not answer");
    if (init.signal?.aborted) throw error;
    throw new Dropped("the server cannot be reached");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  const wait = Number(response.headers.get("Retry-After")) || null;
  throw new Refusal(said?.error?.message ?? `the server answers ${response.status}`, response.status, wait);
}

const soon = (): RequestInit => ({ signal: AbortSignal.timeout(SOON) });

export async function servedModel(): Promise<string> {
  return (await (await request("v1/models", soon())).json()).data[0].id;
}

export async function samplePuzzles(seed: number): Promise<Puzzle[]> {
  return (await (await request(`v1/lace/puzzles?n=6&seed=${seed}`, soon())).json()).data;
}

export async function viewerPage(): Promise<string> {
  return (await request("viewer.html", soon())).text();
}

/**
 * All that is told under `lace` while an answer is written; ends when the answer does, else with an exception.
 *
 * @param heard is called whenever the server has sent something, whatever it is.
 */
export async function* answer(body: object, signal: AbortSignal, heard: () => void): AsyncGenerator<Told> {
  // A connection over a network that is gone may stay open without a word.
  const gone = new AbortController();
  window.addEventListener("offline", () => gone.abort(), { once: true, signal });
  const lost = (error: unknown) => (signal.aborted ? error : new Dropped("the connection was lost"));
  const init = { method: "POST", body: JSON.stringify(body), signal: AbortSignal.any([signal, gone.signal]) };
  const response = await request("v1/chat/completions", init);
  heard();
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (true) {
    const part = await reader.read().catch((error) => {
      throw lost(error);
    });
    heard();
    if (part.done) throw new Dropped("the connection was lost");
    const events = (text + part.value).split("\n\n");
    text = events.pop()!;
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const told = JSON.parse(data);
      if (told.error) throw new Refusal(told.error.message, 500, null);
      if (told.lace) yield told.lace;
    }
  }
}

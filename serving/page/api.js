// Asks the server. Everything that can go wrong becomes one ApiError.

export class ApiError extends Error {
  /**
   * @param {number} status - of HTTP; 0 where no server answered.
   * @param {{status: string, message: string, details: object[]}} error - as the server writes it.
   * @param {number} retryAfterSeconds - when to come back; 0 where that is not known.
   */
  constructor(status, error, retryAfterSeconds = 0) {
    super(error.message);
    this.status = status;
    this.name = error.status;
    this.retryAfterSeconds = retryAfterSeconds;
    this.violations = error.details.flatMap((detail) => detail.field_violations ?? []);
  }
}

async function ask(path, token, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw asApiError(error);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let error = { status: "UNKNOWN", message: `the answer was ${response.status}`, details: [] };
  try {
    error = (await response.json()).error ?? error;
  } catch {
    // Something in between has answered, with a page of its own.
  }
  return new ApiError(response.status, error, Number(response.headers.get("Retry-After")) || 0);
}

function asApiError(error) {
  if (error.name === "AbortError" || error instanceof ApiError) return error;
  return new ApiError(0, { status: "UNREACHABLE", message: String(error), details: [] });
}

/** Returns what GET /v1/models says. */
export async function listModels(token) {
  return (await ask("v1/models", token)).json();
}

/** Returns what the page has to know of the server beside that. */
export async function describeServer() {
  return (await ask("page/server.json")).json();
}

/** Draws; yields {kind, fields} for each event until the summary. */
export async function* generate(request, token, signal) {
  const response = await ask("v1/generate", token, {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify(request),
    signal,
  });
  let complete = false;
  for await (const event of events(response.body)) {
    if (event.kind === "error") {
      throw new ApiError(event.fields.error.code, event.fields.error);
    }
    complete ||= event.kind === "summary";
    yield event;
  }
  if (!complete) {
    throw new ApiError(0, { status: "UNREACHABLE", message: "the answer broke off", details: [] });
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event) yield event;
      }
    }
  } catch (error) {
    throw asApiError(error);
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  const fields = {};
  for (const line of block.split("\n")) {
    const colon = line.indexOf(": ");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
  }
  return fields.data ? { kind: fields.event, fields: JSON.parse(fields.data) } : null;
}

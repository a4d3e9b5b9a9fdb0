// Says plainly what did not work, and what can be done.

const $ = (id) => document.getElementById(id);

/** Shows a text. @param {Function} [again] - what the button beside it does; without, there is none. */
export function notice(text, again) {
  $("notice-text").textContent = text;
  $("retry").hidden = !again;
  $("retry").onclick = again ?? null;
  $("notice").hidden = false;
}

export function hideNotice() {
  $("notice").hidden = true;
}

/** Returns what an ApiError means for somebody at this page. */
export function explain(error, hasToken) {
  switch (error.status) {
    case 0:
      return "The server does not answer. Is it still running?";
    case 401:
      return hasToken ? "This server accepts no such token." : "This server wants a token.";
    case 429:
      return `The server is busy. There may be room in ${wait(error.retryAfterSeconds)}.`;
    case 503:
      return `Nothing can be drawn now: ${error.message}.`;
    case 504:
      return "This took longer than the server allows.";
    default:
      return error.message;
  }
}

function wait(seconds) {
  const whole = Math.max(1, Math.ceil(seconds));
  return whole === 1 ? "a second" : `${whole} seconds`;
}

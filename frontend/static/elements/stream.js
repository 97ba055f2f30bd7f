// One event stream a tab. Elements subscribe to a job from the event number their markup already shows.

const TYPES = ["state", "progress", "loss", "preview", "image", "note", "done"];
const logs = new Map(); // job -> events in order, each {seq, type, ...data}
const listeners = new Map(); // job -> Set of callbacks
let source = null;
let opening = 0;

/** Calls `listener` with every event of `job` after number `since`, past and future. Returns a function that ends it. */
export function subscribe(job, since, listener) {
  if (!listeners.has(job)) listeners.set(job, new Set());
  const receive = (event) => event.seq > since && listener(event);
  listeners.get(job).add(receive);
  if (!logs.has(job)) {
    logs.set(job, []);
    reopen();
  }
  for (const event of logs.get(job)) receive(event);
  return () => listeners.get(job)?.delete(receive);
}

const isOver = (job) => logs.get(job).at(-1)?.type === "done";

function reopen() {
  clearTimeout(opening);
  opening = setTimeout(() => {
    source?.close();
    source = null;
    const jobs = [...logs.keys()].filter((job) => !isOver(job));
    if (jobs.length === 0) return;
    source = new EventSource(`/api/v1/events?jobs=${jobs.join(",")}`);
    for (const type of TYPES) source.addEventListener(type, (message) => deliver(message, jobs));
  });
}

/** The stream's id holds the number of the newest event of every job, in the order they were asked for. */
function deliver(message, jobs) {
  const { job, ...data } = JSON.parse(message.data);
  const log = logs.get(job);
  const seq = Number(message.lastEventId.split("-").at(-1).split(".")[jobs.indexOf(job)]);
  if (!log || seq <= (log.at(-1)?.seq ?? 0)) return; // seen before: the stream began again
  const event = { ...data, seq, type: message.type };
  log.push(event);
  for (const listener of [...listeners.get(job)]) listener(event);
  if (message.type === "done" && [...logs.keys()].every(isOver)) {
    source?.close();
    source = null;
  }
}

addEventListener("pagehide", () => source?.close());
addEventListener("pageshow", (event) => event.persisted && reopen());

/** Says a sentence to people who listen to the page instead of looking at it. */
export function announce(sentence) {
  const place = document.getElementById("announcement");
  if (place && place.textContent !== sentence) place.textContent = sentence;
}

/** Has the server render the page again and puts the parts that `selector` names in place; the rest stays as it is. */
export async function refresh(selector) {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const place of document.querySelectorAll(selector)) {
    const part = place.id ? fresh.getElementById(place.id) : null;
    if (!part) continue;
    const open = [...place.querySelectorAll("details[open][id]")].map((details) => details.id);
    place.replaceChildren(...part.childNodes);
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    globalThis.htmx?.process(place);
  }
}

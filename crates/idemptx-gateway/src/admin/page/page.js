// The inspector: a client of the JSON API.
// Data is set as text, never as HTML.
"use strict";

const OVERVIEW_MS = 2000;
const RECORDS_MS = 5000;
const PAGE_RECORDS = 50;
/** Instead of a cookie: other sites cannot make a browser send this header. */
const OURS = { "Idempotency-Admin": "inspector" };

const $ = (id) => document.getElementById(id);
const state = { paused: false, open: null, next: null, pages: 0, listed: null };

// --- Requests -------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function ask(path, body) {
  const headers = { ...OURS };
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, answer.detail ?? `status ${response.status}`);
  return answer;
}

/** Runs a request, and shows its error. */
async function attempt(work) {
  try {
    await work();
    return true;
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return signIn();
    const away = !(error instanceof Refused);
    if (away) live("no response", "bad");
    say(away ? "The gateway does not respond; retrying." : error.message, "bad");
    return false;
  }
}

function signIn() {
  const wrong = sessionStorage.getItem("token") !== null;
  sessionStorage.removeItem("token");
  if (wrong) $("login-text").textContent = "Wrong token.";
  if ($("login").hidden) {
    $("login").hidden = false;
    $("main").hidden = true;
    live("signed out", "warn");
    $("token").focus();
  }
  return false;
}

// --- Rendering ------------------------------------------------------------------------------

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function pill(text, kind = "") {
  return element("span", { className: `pill ${kind}`, textContent: text });
}

function cell(label, content, number = false) {
  const made = element("td", { className: number ? "number" : "" }, content);
  made.dataset.label = label;
  return made;
}

function pairs(list, entries) {
  list.replaceChildren(
    ...entries.map(([name, value, kind = ""]) =>
      element("div", {}, element("dt", { textContent: name }), element("dd", { className: kind }, value)),
    ),
  );
}

function say(text, kind = "") {
  // Only changes, so that a screen reader does not repeat them.
  if ($("notice").textContent === text) return;
  $("notice").className = `notice ${kind}`;
  $("notice").textContent = text;
}

function live(text, kind) {
  if ($("live").textContent === text) return;
  $("live").textContent = text;
  $("live").className = `pill ${kind}`;
}

const whole = new Intl.NumberFormat("en");
const count = (number) => whole.format(number);

function span(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} days`;
}

function bytes(number) {
  if (number < 1024) return `${number} B`;
  if (number < 1024 * 1024) return `${(number / 1024).toFixed(1)} KiB`;
  return `${(number / 1024 / 1024).toFixed(1)} MiB`;
}

const STATES = {
  running: ["running", "busy"],
  orphaned: ["orphaned", "warn"],
  completed: ["completed", "good"],
  "not-replayable": ["completed, response not kept", "good"],
  unknown: ["outcome unknown", "bad"],
  "response-expired": ["response expired", ""],
};

function standing(name) {
  const [text, kind] = STATES[name] ?? [name, ""];
  return pill(text, kind);
}

/** The digits of an id by which the log and the command line name a record, too. */
const short = (id) => id.slice(33, 41);

/** The request of a record, as far as the record says. */
const request = (record) => (record.path ? `${record.method} ${record.path}` : "–");

// --- This gateway ---------------------------------------------------------------------------

async function overview() {
  const { gateway, store, now, requests, refusals, routes } = await ask("api/overview");
  $("login").hidden = true;
  $("main").hidden = false;
  if (gateway.draining) live("draining", "warn");
  else if (store.reachable === false) live("store unavailable", "bad");
  else live("live", "good");
  $("gateway").textContent =
    `version ${gateway.version}, process ${gateway.pid}, up ${span(gateway.uptime_ms)}`;
  pairs($("tiles"), [
    ["Executing", count(now.executing), now.executing ? "busy" : ""],
    ["Waiting", count(now.waiting)],
    ["Executed", count(requests.executed)],
    ["Replayed", count(requests.replayed), requests.replayed ? "good" : ""],
    ["Refused", count(requests.refused)],
    ["Not stored", count(requests.unstored), requests.unstored ? "warn" : ""],
    ["Unconfirmed", count(now.unconfirmed), now.unconfirmed ? "warn" : ""],
    ["Orphans found", count(requests.orphans), requests.orphans ? "warn" : ""],
  ]);
  const reach = store.reachable
    ? pill("reachable", "good")
    : pill(store.reachable === null ? "not checked yet" : "unavailable", store.reachable === null ? "" : "bad");
  $("store").replaceChildren(reach, `Store: ${store.kind}. ${store.guarantee ?? ""}`);
  $("routes").tBodies[0].replaceChildren(
    ...routes.map((route) =>
      element("tr", {},
        cell("Route", route.name),
        cell("Executed", count(route.executed), true),
        cell("Replayed", count(route.replayed), true),
        cell("Not stored", count(route.unstored), true),
        cell("Refused", count(route.refused), true),
        cell("Bypassed", count(route.passed), true)),
    ),
  );
  $("refusals").textContent = refusals.length
    ? `Refused as ${refusals.map((it) => `${it.code} (${count(it.count)})`).join(", ")}.`
    : "";
  if ($("notice").classList.contains("bad")) say("");
}

// --- Records --------------------------------------------------------------------------------

const view = () => document.querySelector("input[name=view]:checked").value;

/** Lists records; without the store there are none, which is not the same as an empty store. */
async function list(more = false) {
  try {
    await page(more);
  } catch (error) {
    if (!(error instanceof Refused) || error.status === 401) throw error;
    empty("The records cannot be read now.");
    $("more").hidden = true;
    throw error;
  }
}

function empty(text) {
  const row = element("td", { className: "empty", colSpan: 7, textContent: text });
  $("records").tBodies[0].replaceChildren(element("tr", {}, row));
}

/** Says how many records wait for a decision, whatever view is open. */
async function doubts() {
  const page = await ask(`api/records?view=in-doubt&limit=${PAGE_RECORDS}`);
  const number = page.records.length;
  $("doubts").textContent = number ? ` (${number}${page.next ? "+" : ""})` : "";
}

async function page(more) {
  const wanted = view();
  const after = more && state.next ? `&after=${encodeURIComponent(state.next)}` : "";
  const found = await ask(`api/records?view=${wanted}&limit=${PAGE_RECORDS}${after}`);
  if (wanted !== view()) return;
  state.pages = more ? state.pages + 1 : 1;
  state.next = found.next;
  const rows = found.records.map(row);
  const body = $("records").tBodies[0];
  if (more) body.append(...rows);
  else body.replaceChildren(...rows);
  body.querySelectorAll(".empty").forEach((it) => body.rows.length > 1 && it.closest("tr").remove());
  if (!body.rows.length) {
    const nothing = { "in-flight": "Nothing is in flight.", "in-doubt": "Nothing is in doubt.", all: "The store is empty." };
    const text = found.next ? "No match so far; there are more records." : nothing[wanted];
    empty(text);
  }
  $("more").hidden = !found.next;
  const broken = found.unreadable.length;
  $("records-note").textContent = broken
    ? `${broken} records cannot be read by this version: ${found.unreadable.map(short).join(", ")}.`
    : "";
}

function row(record) {
  const open = element("button", { type: "button", className: "link mono", textContent: short(record.id), title: record.id });
  open.setAttribute("aria-label", `Open record ${record.id.slice(33, 41)}`);
  open.addEventListener("click", () => go(record.id));
  return element("tr", {},
    cell("Record", open),
    cell("Request", request(record)),
    cell("State", standing(record.state)),
    cell("Attempt", count(record.attempt), true),
    cell("Age", span(record.age_ms), true),
    cell("Lease left", record.state === "running" ? span(record.lease_ms) : "–", true),
    cell("Expires in", span(record.expires_in_ms), true));
}

async function find() {
  const text = $("find-key").value;
  // What was open is not what was asked for.
  history.replaceState(null, "", location.pathname);
  close();
  $("find-note").textContent = "";
  $("matches").replaceChildren();
  if (/^[0-9a-f]{32}:[0-9a-f]{32}$/.test(text.trim())) {
    return go(text.trim());
  }
  const { matches } = await ask("api/search", {
    key: text,
    scope: $("find-scope").value,
    method: $("find-method").value,
    path: $("find-path").value,
  });
  const found = matches.filter((it) => it.record);
  $("matches").replaceChildren(
    ...found.map((it) => {
      const open = element("button", { type: "button", className: "mono", textContent: short(it.id) });
      open.addEventListener("click", () => go(it.id));
      return element("li", {}, open, standing(it.record.state), request(it.record));
    }),
  );
  if (found.length === 1) return go(found[0].id);
  $("find-note").textContent = found.length
    ? ""
    : "No record for this key: it was never used in this scope, or has expired.";
}

function go(id) {
  const hash = `#${id}`;
  if (location.hash === hash) attempt(() => show(id, true));
  else location.hash = hash;
}

// --- One record -----------------------------------------------------------------------------

async function show(id, focus) {
  const { record, answer, story, story_note: note, actions } = await ask(`api/records/${id}`);
  if (state.open !== id && !focus) return;
  state.open = id;
  $("record").hidden = false;
  $("record-id").textContent = id;
  if (record) {
    pairs($("record-facts"), [
      ["State", standing(record.state)],
      ["Request", request(record)],
      ...(record.route ? [["Route", record.route]] : []),
      ...(record.upstream ? [["Upstream", record.upstream]] : []),
      ["Attempt", count(record.attempt)],
      ["Claimed", `${span(record.age_ms)} ago`],
      ["Last written", `${span(record.idle_ms)} ago`],
      ...(record.state === "running" ? [["Lease left", span(record.lease_ms)]] : []),
      ["Expires in", span(record.expires_in_ms)],
      ...(answer ? [["Response", `${answer.status}, ${bytes(answer.body_bytes)} of body`]] : []),
      ["Request fingerprint", element("span", { className: "mono", textContent: record.fingerprint })],
    ]);
  } else {
    pairs($("record-facts"), [["State", pill("no record", "")]]);
  }
  $("story").replaceChildren(...story.map(moment));
  $("story-note").textContent = note;
  // Unchanged buttons stay, so that a click does not miss.
  const offered = JSON.stringify([id, actions]);
  if (state.offered !== offered) {
    state.offered = offered;
    $("actions").replaceChildren(...actions.map((it) => action(id, it)));
    if (!actions.length) $("actions").append(element("p", { textContent: record ? "None while its owner holds the lease." : "None: there is no record." }));
  }
  if (focus) {
    $("record-title").focus();
    $("record").scrollIntoView({ block: "start" });
  }
}

const KINDS = { claimed: "busy", renewed: "busy", settled: "good", replayed: "good", refused: "warn",
  orphan: "warn", "no-verdict": "bad", fenced: "bad", operator: "bad" };

function moment(event) {
  const times = event.times > 1 ? `, ${count(event.times)} times, the last ${span(event.last_ms_ago)} ago` : "";
  return element("li", { className: KINDS[event.kind] ?? "" },
    element("time", { textContent: `${span(event.ms_ago)} ago` }),
    `${event.text}${times}`);
}

function action(id, offered) {
  const button = element("button", { type: "button", className: "danger", textContent: offered.title });
  button.addEventListener("click", () => confirm(id, offered));
  return element("div", {}, button, element("p", { textContent: offered.consequence }));
}

function confirm(id, offered) {
  const dialog = $("confirm");
  $("confirm-title").textContent = `${offered.title}?`;
  $("confirm-id").textContent = id;
  $("confirm-text").textContent = offered.consequence;
  $("confirm-yes").textContent = offered.title;
  const answers = offered.name === "answer";
  $("answer").hidden = !answers;
  // Not on `close`: it fires later, and for every way of closing.
  dialog.querySelector("form").onsubmit = ({ submitter }) => {
    if (submitter !== $("confirm-yes")) return;
    const body = { seen: offered.seen, reason: $("reason").value };
    if (answers) {
      body.answer = {
        status: Number($("answer-status").value),
        content_type: $("answer-type").value,
        body: $("answer-body").value,
      };
    }
    attempt(async () => {
      const { done } = await ask(`api/records/${id}/${offered.name}`, body);
      say(done, "good");
      $("reason").value = "";
      await Promise.all([show(id, true), list(), doubts(), overview()]);
    });
  };
  dialog.showModal();
}

function close() {
  state.open = null;
  state.offered = null;
  $("record").hidden = true;
}

// --- Events ---------------------------------------------------------------------------------

function on(id, event, work) {
  $(id).addEventListener(event, (it) => {
    it.preventDefault();
    attempt(async () => work());
  });
}

on("login", "submit", async () => {
  sessionStorage.setItem("token", $("token").value);
  $("token").value = "";
  await overview();
  await list();
  await doubts();
  $("main").focus();
});
on("find", "submit", async () => {
  try {
    await find();
  } catch (error) {
    if (!(error instanceof Refused) || error.status === 401) throw error;
    $("find-note").textContent = error.message;
  }
});
on("more", "click", () => list(true));
on("record-close", "click", () => {
  history.replaceState(null, "", location.pathname);
  close();
});
on("pause", "click", () => {
  state.paused = !state.paused;
  $("pause").textContent = state.paused ? "Resume" : "Pause";
  $("pause").setAttribute("aria-pressed", String(state.paused));
  if (state.paused) live("paused", "warn");
});
document.querySelectorAll("input[name=view]").forEach((it) =>
  it.addEventListener("change", () => attempt(() => list())));
addEventListener("hashchange", opened);

function opened() {
  const id = location.hash.slice(1);
  if (id) attempt(() => show(id, true));
  else close();
}

/** Repeats a request while the page is visible, each time after the previous one. */
async function every(ms, work) {
  if (!state.paused && !document.hidden && $("login").hidden) await attempt(work);
  setTimeout(() => every(ms, work), ms);
}

every(OVERVIEW_MS, async () => {
  await overview();
  if (state.open && !$("confirm").open) await show(state.open, false);
});
every(RECORDS_MS, async () => {
  // Pages that were loaded with "More" stay.
  if (state.pages <= 1 && !$("records").contains(document.activeElement)) await list();
  await doubts();
});
opened();

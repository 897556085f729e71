// The page over the admin API. Everything that comes from the server goes into the document as text, never as markup.

const TOKEN = "keyguard-admin-token";
const PAGE = 50;
const $ = (id) => document.getElementById(id);

// ---- the document ----

/** An element with properties and children; what is null is left out. */
function el(name, properties = {}, ...children) {
  return fill(document.createElement(name), properties, children);
}

/** The same for SVG. */
function shape(name, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null));
  return element;
}

let noticeTimer;
/** Tells something for a while, or until something else is told. */
function notice(text, stays = false) {
  $("notice").textContent = text;
  clearTimeout(noticeTimer);
  if (!stays) noticeTimer = setTimeout(() => { $("notice").textContent = ""; }, 6000);
}

const number = (value) => (value == null ? "–" : Number(value).toLocaleString());
const percent = (value) => `${Number(value ?? 0).toFixed(1)} %`;

function time(value) {
  if (value == null) return el("span", { class: "none" }, "never");
  const date = new Date(value);
  if (Number.isNaN(date.getTime())) return document.createTextNode(String(value));
  return el("time", { datetime: date.toISOString() }, date.toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" }));
}

// ---- the server ----

/** What the server refused; `status` is 0 when there was no answer. */
class Refused extends Error {
  constructor(status, text) { super(text); this.status = status; }
}

async function api(method, path, body) {
  let answer;
  try {
    answer = await fetch(`/admin${path}`, {
      method,
      cache: "no-store",
      credentials: "omit",
      headers: { "X-Admin-Key": sessionStorage.getItem(TOKEN) ?? "", ...(body ? { "Content-Type": "application/json" } : {}) },
      body: body && JSON.stringify(body),
    });
  } catch {
    throw new Refused(0, "No answer: is keyguard serve still running?");
  }
  const json = await answer.json().catch(() => null);
  if (answer.ok) return json;
  const detail = typeof json?.detail === "string" ? json.detail : null;
  const told = {
    401: "This token is not known.", 403: detail ?? "This token may not do this.", 404: detail ?? "There is no admin API: see keyguard serve --help.",
    429: "Too many wrong tokens from this address: wait a minute.", 503: "The Redis or Valkey server does not answer.",
  };
  throw new Refused(answer.status, told[answer.status] ?? detail ?? `The server answered ${answer.status}.`);
}

/** Runs what a button or form starts: one at a time, and what goes wrong is told. */
async function act(button, work, tell = notice) {
  if (button) button.disabled = true;
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    tell(error.message);
  } finally {
    if (button) button.disabled = false;
  }
}

// ---- pieces ----

/** A table: columns are [title, cell of a row, class]. On narrow screens each row is a card. */
function table(caption, columns, rows, whenEmpty) {
  if (rows.length === 0) return el("p", { class: "none" }, whenEmpty);
  const cell = (row) => ([title, of, kind]) => el("td", { "data-label": title, class: kind }, of(row));
  return el("table", { class: "cards" },
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, columns.map(([title, , kind]) => el("th", { scope: "col", class: kind }, title)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, columns.map(cell(row))))));
}

function field(name, label, properties = {}, hint) {
  const id = `field-${name}`;
  return [el("label", { for: id }, label), el("input", { id, name, autocomplete: "off", "aria-describedby": hint && `${id}-hint`, ...properties }),
    hint && el("p", { class: "hint", id: `${id}-hint` }, hint)];
}

function choice(name, label, options) {
  const id = `field-${name}`;
  return [el("label", { for: id }, label), el("select", { id, name }, options.map(([value, text]) => el("option", { value }, text)))];
}

/** Asks for some fields; what `send` throws is told in the dialog, which stays: what is behind it, nobody sees. */
function ask(title, fields, verb, send, danger = false) {
  const dialog = $("dialog");
  const problem = el("p", { class: "problem", role: "alert" });
  const submit = el("button", { class: danger ? "danger" : "primary" }, verb);
  const form = el("form", {
    onsubmit: async (event) => {
      event.preventDefault();
      problem.textContent = "";
      const values = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value.trim()]));
      await act(submit, async () => { await send(values); if (dialog.contains(form)) dialog.close(); }, (text) => { problem.textContent = text; });
    },
  }, fields, problem, el("div", { class: "row" }, submit, el("button", { type: "button", onclick: () => dialog.close() }, "Cancel")));
  dialog.replaceChildren(el("h2", { id: "dialog-title" }, title), form);
  dialog.showModal();
}

/** A key that is shown this once. */
function showKey(raw) {
  const dialog = $("dialog");
  const told = el("p", { class: "hint", role: "status" });
  const copy = async () => {
    try { await navigator.clipboard.writeText(raw); told.textContent = "Copied."; } catch { told.textContent = "The browser does not let this page copy: mark the key and copy it."; }
  };
  dialog.replaceChildren(
    el("h2", { id: "dialog-title" }, "The API key"),
    el("p", {}, "Keep it now: it is shown this once, and stored nowhere."),
    el("code", { class: "raw", id: "raw-key", tabindex: "0" }, raw), told,
    el("div", { class: "row" }, el("button", { type: "button", class: "primary", onclick: copy }, "Copy"),
      el("button", { type: "button", onclick: () => dialog.close() }, "Done")));
  if (!dialog.open) dialog.showModal();
}

// Nothing of a key stays in the document once the dialog is closed.
$("dialog").addEventListener("close", () => $("dialog").replaceChildren());

// ---- overview ----

const SPANS = [["24", "24 hours"], ["168", "7 days"], ["720", "30 days"], ["2160", "90 days"]];
let span = "24";

async function overview() {
  const stats = await api("GET", `/stats?hours=${span}`);
  const tiles = [
    ["Let in", number(stats.total_requests)], ["In the last hour", number(stats.recent_requests_1h)], ["Refused", number(stats.total_refused)],
    ["Error rate", percent(stats.error_rate)], ["Keys", number(stats.total_keys)], ["Active keys", number(stats.active_keys)],
    ["Organizations", number(stats.total_organizations)],
  ];
  const select = el("select", { "aria-label": "Time shown", onchange: () => { span = select.value; show(); } },
    SPANS.map(([value, text]) => el("option", { value, selected: value === span }, text)));
  const refusals = Object.entries(stats.refusals ?? {}).filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]);
  const most = Math.max(1, ...refusals.map(([, count]) => count));
  return [
    el("div", { class: "head" }, el("h2", {}, "Overview"), el("button", { type: "button", onclick: show }, "Refresh")),
    el("dl", { class: "tiles" }, tiles.map(([title, value]) => el("div", {}, el("dt", {}, title), el("dd", {}, value)))),
    el("div", { class: "card" }, el("div", { class: "head" }, el("h3", {}, "Usage over time"), el("div", {}, select)), plot(stats.hours ?? [])),
    el("div", { class: "columns" },
      el("div", { class: "card" }, el("h3", {}, "Refusals"), table("By code, since the store was made", [
        ["Code", ([code]) => el("code", {}, code)], ["Count", ([, count]) => number(count), "number"],
        ["Share", ([code, count]) => el("meter", { min: 0, max: most, value: count, "aria-label": `${code}: ${count}` })],
      ], refusals, "Nothing was refused.")),
      el("div", { class: "card" }, el("h3", {}, "Most used keys"), table("Of all time", [
        ["Label", (key) => key.label], ["Start", (key) => el("code", {}, key.prefix), "short"], ["Let in", (key) => number(key.requests), "number"],
      ], stats.top_keys ?? [], "No key was used yet."))),
  ];
}

/** Bars of what was let in, what was refused on top; as many of the hours together as leaves no more than 96 bars. */
function plot(hours) {
  const size = Math.max(1, Math.ceil(Number(span) / 96));
  const bars = together(hours, size);
  const high = nice(Math.max(1, ...bars.map((bar) => bar.requests + bar.refused)));
  // As wide as it is shown, so that its text has the size of other text; with room for the longest number.
  const [width, height, left, bottom] = [Math.max(280, $("main").clientWidth - 76), 220, 12 + 8 * number(high).length, 24];
  const step = (width - left) / bars.length;
  const y = (value) => (height - bottom) * (1 - value / high) + 8;
  const at = (bar) => new Date(bar.from).toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" });
  const grid = [0, high / 2, high].map((value) => [
    shape("line", { x1: left, x2: width, y1: y(value), y2: y(value) }),
    shape("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, number(value)),
  ]);
  const columns = bars.map((bar, i) => {
    const all = bar.requests + bar.refused;
    const box = { x: left + i * step + step * 0.1, width: step * 0.8 };
    return shape("g", {}, shape("title", {}, `${at(bar)}: ${number(bar.requests)} let in, ${number(bar.refused)} refused`),
      shape("rect", { class: "let-in", ...box, y: y(bar.requests), height: y(0) - y(bar.requests) }),
      shape("rect", { class: "refused", ...box, y: y(all), height: y(bar.requests) - y(all) }));
  });
  const total = bars.reduce((sum, bar) => sum + bar.requests + bar.refused, 0);
  const ends = bars.length > 0 ? [
    shape("text", { x: left, y: height + 4 }, at(bars[0])),
    shape("text", { x: width, y: height + 4, "text-anchor": "end" }, at(bars[bars.length - 1])),
  ] : [];
  const picture = shape("svg", { class: "plot", viewBox: `0 0 ${width} ${height + 12}`, role: "img", "aria-label": `${number(total)} requests in this time` },
    grid.flat(), columns, ends);
  return [el("p", { class: "hint" }, size === 1 ? "Requests in each hour" : `Requests in each ${size} hours`), picture,
    el("ul", { class: "legend" }, el("li", {}, "let in"), el("li", { class: "refused" }, "refused")),
    el("details", {}, el("summary", {}, "As a table"), table("Times at which there was a request", [
      ["From", (bar) => at(bar)], ["Let in", (bar) => number(bar.requests), "number"], ["Refused", (bar) => number(bar.refused), "number"],
    ], bars.filter((bar) => bar.requests + bar.refused > 0), "There was none."))];
}

/** The hours of the span, those without a request too, so many together. */
function together(hours, size) {
  const HOUR = 3600000;
  const last = Math.floor(Date.now() / HOUR) * HOUR;
  const bars = [];
  for (let i = Number(span) - 1; i >= 0; i -= size) bars.push({ from: last - i * HOUR, requests: 0, refused: 0 });
  for (const hour of hours) {
    const bar = bars[Math.floor((new Date(hour.hour).getTime() - bars[0].from) / HOUR / size)];
    if (bar) { bar.requests += hour.requests; bar.refused += hour.refused; }
  }
  return bars;
}

/** The next number that is easy to read, and its half too: 2, 4 or 10 and zeros. */
function nice(value) {
  const ten = 10 ** Math.floor(Math.log10(value));
  return [2, 4, 10].map((n) => n * ten).find((n) => n >= value) ?? value;
}

// ---- lists ----

/** A list that goes on page by page; `load` gives rows and where the next ones begin. */
function paged(load, draw) {
  const place = el("div", { class: "card" });
  let rows = [];
  const more = async (after) => {
    const page = await load(after);
    rows = rows.concat(page.rows);
    const next = page.next && el("button", { type: "button", onclick: (event) => act(event.currentTarget, () => more(page.next)) }, "Show more");
    place.replaceChildren(draw(rows, `${number(rows.length)} of ${number(page.total)}`), ...(next ? [el("div", { class: "row" }, next)] : []));
  };
  return more("").then(() => place);
}

const button = (text, name, work, kind) => el("button", { type: "button", class: kind, "aria-label": `${text} ${name}`, onclick: work }, text);

async function keys() {
  const list = await paged(
    async (after) => {
      const page = await api("GET", `/keys?limit=${PAGE}${after && `&after=${encodeURIComponent(after)}`}`);
      return { rows: page.keys, next: page.next, total: page.total };
    },
    (rows, shown) => table(`API keys: ${shown}`, [
      ["Label", (key) => key.label], ["Start", (key) => el("code", {}, key.prefix), "short"], ["Organization", (key) => key.org_name],
      ["State", (key) => state(key), "short"],
      ["Scopes", (key) => (key.scopes ?? []).join(", ") || "–"], ["Last used", (key) => time(key.last_used_at), "short"],
      ["", (key) => (key.status !== "revoked" ? [
        button("Rotate", key.label, () => rotate(key)), " ", button("Revoke", key.label, () => revoke(key), "danger"),
      ] : []), "actions"],
    ], rows, "There are no keys yet."));
  return [el("div", { class: "head" }, el("h2", {}, "Keys"), el("button", { type: "button", class: "primary", onclick: createKey }, "Create key")), list];
}

function state(key) {
  const word = key.status === "active" && key.expired ? "expired" : key.status;
  return el("span", { class: word === "active" ? "on" : "off" }, word);
}

async function createKey(event) {
  const { organizations } = await act(event.currentTarget, () => api("GET", "/orgs?limit=1000")) ?? {};
  if (!organizations) return;
  if (organizations.length === 0) { notice("Create an organization first."); location.hash = "#organizations"; return; }
  ask("Create a key", [
    choice("org_name", "Organization", organizations.map((org) => [org.name, org.name])),
    field("label", "Label", { required: true, maxlength: 255 }),
    field("scopes", "Scopes", { value: "read" }, "Words with commas between them, such as orders:read, orders:*."),
    field("rate_limit_per_minute", "Requests a minute", { type: "number", min: 1, max: 10000, value: 60, required: true }),
  ], "Create", async (values) => {
    const scopes = values.scopes.split(",").map((scope) => scope.trim()).filter(Boolean);
    const key = await api("POST", "/keys", { ...values, scopes, rate_limit_per_minute: Number(values.rate_limit_per_minute) });
    showKey(key.raw_key);
    await show();
  });
}

function rotate(key) {
  ask(`Rotate ${key.label}`, [
    el("p", {}, "The key gets a new secret."),
    field("grace", "Let the old one work for", { placeholder: "1h" }, "A duration such as 30m, 1h or 7d; empty for not at all."),
  ], "Rotate", async (values) => {
    const made = await api("POST", `/keys/${encodeURIComponent(key.id)}/rotate`, values.grace ? { grace: values.grace } : {});
    showKey(made.raw_key);
    await show();
  });
}

function revoke(key) {
  ask(`Revoke ${key.label}?`, [el("p", {}, "From now on every call with it is refused. This is final.")], "Revoke", async () => {
    await api("DELETE", `/keys/${encodeURIComponent(key.id)}`);
    notice("Revoked.");
    await show();
  }, true);
}

async function organizations() {
  const list = await paged(
    async (after) => {
      const page = await api("GET", `/orgs?limit=${PAGE}${after && `&after=${encodeURIComponent(after)}`}`);
      return { rows: page.organizations, next: page.next, total: page.total };
    },
    (rows, shown) => table(`Organizations: ${shown}`, [
      ["Name", (org) => org.name], ["State", (org) => el("span", { class: org.status === "active" ? "on" : "off" }, org.status), "short"],
      ["Keys", (org) => number(org.key_count), "number"], ["Since", (org) => time(org.created_at), "short"],
      ["", (org) => (org.status === "active" ? button("Suspend", org.name, (event) => setStatus(event, org, "suspended"), "danger")
        : button("Activate", org.name, (event) => setStatus(event, org, "active"))), "actions"],
    ], rows, "There are no organizations yet."));
  const create = () => ask("Create an organization", [field("name", "Name", { required: true, maxlength: 255 })], "Create",
    async (values) => { await api("POST", "/orgs", values); await show(); });
  return [el("div", { class: "head" }, el("h2", {}, "Organizations"), el("button", { type: "button", class: "primary", onclick: create }, "Create organization")), list];
}

function setStatus(event, org, status) {
  return act(event.currentTarget, async () => {
    await api("PATCH", `/orgs/${encodeURIComponent(org.name)}`, { status });
    await show();
  });
}

async function addresses() {
  const list = await paged(
    async (cursor) => {
      const page = await api("GET", `/addresses?limit=${PAGE}${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
      return { rows: page.addresses, next: page.next };
    },
    (rows) => table("Address rules; those that keyguard set by itself say so", [
      ["Network", (rule) => el("code", {}, rule.net), "short"], ["Kind", (rule) => rule.kind, "short"], ["Path", (rule) => rule.path ?? "all"],
      ["Ends", (rule) => (rule.expires_at == null ? "never" : time(rule.expires_at)), "short"], ["Reason", (rule) => rule.reason ?? "–"], ["By", (rule) => rule.by ?? "–", "short"],
      ["", (rule) => button("Remove", rule.net, (event) => remove(event, rule)), "actions"],
    ], rows, "No address is blocked or allowed by a rule."));
  const block = () => ask("Block or allow addresses", [
    choice("kind", "What", [["block", "Block"], ["allow", "Allow, which beats every block"]]),
    field("net", "Network", { required: true, placeholder: "192.0.2.7 or 192.0.2.0/24" }),
    field("duration", "For", { placeholder: "1h" }, "A duration such as 30m, 1h or 7d; empty for good."),
    field("path", "Path", { placeholder: "/login" }, "Only there and below; empty for everywhere."),
    field("reason", "Reason"),
  ], "Save", async (values) => {
    await api("POST", "/addresses", Object.fromEntries(Object.entries(values).filter(([, value]) => value !== "")));
    await show();
  });
  return [el("div", { class: "head" }, el("h2", {}, "Addresses"), el("button", { type: "button", class: "primary", onclick: block }, "Add rule")), list];
}

function remove(event, rule) {
  return act(event.currentTarget, async () => {
    const at = new URLSearchParams({ net: rule.net, kind: rule.kind, ...(rule.path ? { path: rule.path } : {}) });
    await api("DELETE", `/addresses?${at}`);
    await show();
  });
}

// ---- views ----

const VIEWS = { overview, keys, organizations, addresses };
let drawn = 0;

/** Draws the view that the address names. Of several that are on their way, the last one asked for stays. */
async function show() {
  const name = Object.hasOwn(VIEWS, location.hash.slice(1)) ? location.hash.slice(1) : "overview";
  const ours = ++drawn;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    const content = await VIEWS[name]();
    if (ours !== drawn) return;
    entered(true);
    $("view").replaceChildren(...content);
    document.title = `${name} · keyguard`;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (ours !== drawn) return;
    if ($("view").hidden) {
      if ([401, 403, 429].includes(error.status)) leave();
      notice(error.message, true);
      return;
    }
    // What was shown before is of another view, or of another time.
    $("view").replaceChildren(
      el("h2", {}, document.querySelector("nav a[aria-current]").textContent),
      el("div", { class: "card" }, el("p", { class: "problem", role: "alert" }, error.message),
        el("div", { class: "row" }, el("button", { type: "button", onclick: show }, "Try again"))));
  }
}

function entered(is) {
  $("enter").hidden = is;
  $("view").hidden = !is;
  $("leave").hidden = !is;
  document.querySelector("nav").hidden = !is;
}

function leave() {
  sessionStorage.removeItem(TOKEN);
  drawn++;
  entered(false);
  $("view").replaceChildren();
  $("token").focus();
}

$("enter").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value.trim());
  $("token").value = "";
  notice("");
  act(event.submitter, show);
});
$("leave").addEventListener("click", leave);
addEventListener("hashchange", () => {
  notice("");
  if (!$("view").hidden) show().then(() => $("main").focus());
});

if (sessionStorage.getItem(TOKEN)) show();
else $("token").focus();

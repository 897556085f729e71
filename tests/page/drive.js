// Drives the page at / in headless Chromium as an operator does, and checks what it shows. Run by tests/page.rs.
//
//   drive.js URL TOKEN READ_ONLY_TOKEN CHROMIUM SCREENSHOTS
const assert = require("node:assert/strict");
const { mkdtempSync, rmSync } = require("node:fs");
const path = require("node:path");
const { chromium } = require("playwright-core");

const [url, token, readOnly, executablePath, screenshots] = process.argv.slice(2);
// What a stranger may have put into a label: it is text.
const LABEL = "web <img src=x onerror=alert(1)>";
const ORG = `shop <img src=x onerror=alert(2)> ${"o".repeat(120)}`;
const SCOPE = `<img/src=x/onerror=alert(3)>${"s".repeat(120)}`;
const WAIT = 30_000;

const problems = [];
let expected = [];

async function main(context) {
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT);
  page.on("pageerror", (error) => problems.push(`script: ${error.message}`));
  page.on("dialog", (dialog) => { problems.push(`a dialog of the browser: ${dialog.message()}`); dialog.dismiss(); });
  page.on("console", (message) => {
    const text = message.text();
    if (message.type() === "error" && !expected.some((part) => text.includes(part))) problems.push(`console: ${text}`);
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url)) problems.push(`asked another host: ${request.url()}`);
  });

  // Nobody comes in without a token, and with one that is not known.
  await page.goto(url);
  assert.equal(await page.getByRole("heading", { name: "Sign in" }).isVisible(), true);
  assert.equal(await page.getByRole("navigation").count(), 0);
  expected = ["403"];
  await signIn(page, `${token}x`);
  await page.getByRole("status").filter({ hasText: "Invalid admin key." }).waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.length), 0, "a token that is refused is not kept");
  expected = [];

  // The keyboard is enough: the field has the focus, Enter signs in.
  assert.equal(await page.evaluate(() => document.activeElement.id), "token");
  await signIn(page, token);
  await page.getByRole("heading", { name: "Overview" }).waitFor();
  assert.equal(await tile(page, "Let in"), "0");

  await view(page, "Organizations");
  await page.getByRole("button", { name: "Create organization" }).press("Enter");
  await page.getByLabel("Name").fill(ORG);
  await page.keyboard.press("Enter");
  await page.getByRole("cell", { name: ORG, exact: true }).waitFor();

  await view(page, "Keys");
  await page.getByRole("button", { name: "Create key" }).click();
  await page.getByLabel("Label").fill(LABEL);
  await page.getByLabel("Scopes").fill(`orders:read, ${SCOPE}`);
  await page.getByLabel("Requests a minute").fill("100");
  await page.getByRole("button", { name: "Create", exact: true }).click();
  const first = await shownKey(page);
  const row = page.getByRole("row").filter({ hasText: LABEL });
  await row.getByText("active").waitFor();
  await row.getByText(`orders:read, ${SCOPE}`).waitFor();
  await row.getByText(ORG).waitFor();
  assert.equal(await page.locator("main img").count(), 0, "a label is text");

  // A word that every object of the language has is no view.
  await page.goto(`${url}/#constructor`);
  await page.getByRole("heading", { name: "Overview", exact: true }).waitFor();

  // Used, it is counted.
  for (let i = 0; i < 3; i++) assert.equal(await verify(first), 200);
  assert.equal(await verify(`${first}x`), 401);
  await view(page, "Overview");
  await until(async () => {
    await page.getByRole("button", { name: "Refresh" }).click();
    return (await tile(page, "Let in")) === "3" && (await tile(page, "Refused")) === "1";
  });
  const bar = page.locator("svg.plot title").filter({ hasText: "3 let in, 1 refused" });
  assert.equal(await bar.count(), 1, "the hour stands in the plot");
  await page.getByRole("row").filter({ hasText: "NOT_FOUND" }).waitFor();
  await page.getByRole("row").filter({ hasText: LABEL }).getByText("3", { exact: true }).waitFor();
  await page.screenshot({ path: path.join(screenshots, "overview.png"), fullPage: true });
  for (const span of ["7 days", "30 days", "90 days"]) {
    await page.getByLabel("Time shown").selectOption(span);
    await until(async () => (await bar.count()) === 1);
  }

  // Rotated without grace, the old one is refused at once.
  await view(page, "Keys");
  await page.getByRole("button", { name: `Rotate ${LABEL}` }).click();
  await page.getByRole("button", { name: "Rotate", exact: true }).click();
  const second = await shownKey(page);
  assert.notEqual(second, first);
  assert.deepEqual([await verify(first), await verify(second)], [401, 200]);

  // Revoked, it is refused.
  await page.getByRole("button", { name: `Revoke ${LABEL}` }).click();
  await page.getByRole("button", { name: "Revoke", exact: true }).click();
  await row.getByText("revoked").waitFor();
  assert.equal(await verify(second), 401);
  await page.screenshot({ path: path.join(screenshots, "keys.png"), fullPage: true });

  // An address is blocked, and let go.
  await view(page, "Addresses");
  await page.getByRole("button", { name: "Add rule" }).click();
  await page.getByLabel("Network").fill("192.0.2.0/24");
  await page.getByLabel("For", { exact: true }).fill("1h");
  await page.getByLabel("Reason").fill("trouble");
  await page.getByRole("button", { name: "Save" }).click();
  await page.getByRole("row").filter({ hasText: "192.0.2.0/24" }).getByText("trouble").waitFor();
  await page.getByRole("button", { name: "Remove 192.0.2.0/24" }).click();
  await page.getByText("No address is blocked").waitFor();

  // What the server refuses is told, and the dialog stays.
  expected = ["422", "400"];
  await page.getByRole("button", { name: "Add rule" }).click();
  await page.getByLabel("Network").fill("nowhere");
  await page.getByRole("button", { name: "Save" }).click();
  await page.getByRole("dialog").getByRole("alert").filter({ hasText: /./ }).waitFor();
  assert.equal(await page.getByRole("dialog").isVisible(), true);
  await page.keyboard.press("Escape");
  expected = [];

  // A view that has no answer says so in its place, and can be asked for again.
  expected = ["ERR_FAILED"];
  await page.route("**/admin/keys*", (route) => route.abort());
  await view(page, "Keys");
  await page.locator("#view").getByRole("alert").filter({ hasText: "No answer" }).waitFor();
  assert.equal(await page.getByRole("table").count(), 0, "nothing of another view is left");
  await page.unroute("**/admin/keys*");
  await page.getByRole("button", { name: "Try again" }).click();
  await row.getByText("revoked").waitFor();
  expected = [];

  // Words stay whole in a table, however long its other columns are.
  for (const [name, value] of [["Keys", "revoked"], ["Organizations", "active"]]) {
    await view(page, name);
    const lines = await page.getByRole("cell", { name: value, exact: true }).first().locator("span").evaluate((of) => of.getClientRects().length);
    assert.equal(lines, 1, `${value} stands on ${lines} lines`);
  }

  // On a phone nothing sticks out at the side.
  await page.setViewportSize({ width: 360, height: 740 });
  for (const name of ["Overview", "Keys", "Organizations", "Addresses"]) {
    await view(page, name);
    const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.equal(over, 0, `${name} is ${over} pixels too wide`);
  }
  await view(page, "Overview");
  await page.screenshot({ path: path.join(screenshots, "phone.png"), fullPage: true });

  // Signed out, nothing is left; with a token that may only read, nothing can be changed.
  await page.getByRole("button", { name: "Sign out" }).click();
  assert.equal(await page.evaluate(() => sessionStorage.length), 0);
  assert.equal(await page.getByRole("navigation").count(), 0);
  await signIn(page, readOnly);
  await page.getByRole("heading", { name: "Overview" }).waitFor();
  await view(page, "Organizations");
  expected = ["403"];
  await page.getByRole("button", { name: `Suspend ${ORG}` }).click();
  await page.getByRole("status").filter({ hasText: /./ }).waitFor();
  await page.getByRole("row").filter({ hasText: ORG }).getByText("active").waitFor();
  expected = [];

  // What describes the API works within its own policy, and sends what it is told to.
  const docs = await page.goto(`${url}/docs/`);
  assert.match(docs.headers()["content-security-policy"], /frame-ancestors 'none'/);
  await page.getByRole("button", { name: "Authorize" }).first().click();
  await page.locator(".auth-container input").fill(readOnly);
  await page.locator(".auth-btn-wrapper").getByRole("button", { name: "Apply credentials" }).click();
  await page.locator(".auth-btn-wrapper").getByRole("button", { name: "Close" }).click();
  const operation = page.locator(".opblock-get").filter({ hasText: "/admin/orgs" }).first();
  await operation.locator(".opblock-summary-control").click();
  await operation.getByRole("button", { name: "Try it out" }).click();
  await operation.getByRole("button", { name: "Execute" }).click();
  await operation.locator(".live-responses-table").getByText("total").first().waitFor();
}

async function signIn(page, word) {
  await page.getByLabel("Admin token").fill(word);
  await page.keyboard.press("Enter");
}

async function view(page, name) {
  await page.getByRole("link", { name, exact: true }).click();
  await page.getByRole("heading", { name, exact: true }).waitFor();
}

/** The number on a tile of the overview. */
async function tile(page, title) {
  const found = page.locator("dl.tiles > div").filter({ has: page.locator("dt", { hasText: new RegExp(`^${title}$`) }) });
  return found.locator("dd").innerText();
}

/** The key in the dialog, which does not stay in the document when it is closed. */
async function shownKey(page) {
  const raw = await page.locator("#raw-key").innerText();
  await page.getByRole("button", { name: "Done" }).click();
  await until(async () => !(await page.content()).includes(raw));
  return raw;
}

/** What the gate answers a caller who has this key. */
async function verify(key) {
  return (await fetch(new URL("/verify", url), { headers: { "X-API-Key": key } })).status;
}

async function until(holds) {
  const end = Date.now() + WAIT;
  while (!(await holds())) {
    assert.ok(Date.now() < end, `it never came to ${holds}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

(async () => {
  const profile = mkdtempSync(path.join(screenshots, "profile-"));
  // It asks nobody but us: it would look for updates and hosts of its maker.
  const context = await chromium.launchPersistentContext(profile, {
    executablePath,
    headless: true,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
    viewport: { width: 1200, height: 900 },
  });
  try {
    await main(context);
    assert.deepEqual(problems, []);
  } finally {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  }
})().catch((error) => {
  console.error(error.message, "\n", error.stack, "\n", problems.join("\n"));
  process.exit(1);
});

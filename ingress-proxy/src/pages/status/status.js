// Asks for what is live every two seconds and writes it down. Names are other people's text: all of it becomes
// textContent, never markup.
"use strict";

const POLL_MS = 2000;
// Points of the course of requests: two minutes.
const POINTS = 60;
const FEW_DAYS = 14;

const byId = (id) => document.getElementById(id);
const wanted = { filter: "", from: 0 };
let previous = null;
let course = [];
let timer = 0;
// Answers to earlier questions that come late are not shown.
let asked = 0;

/** Sets a text if it is another one, so that nobody is told what has not changed. */
function say(element, text, kind = "") {
  if (element.textContent !== text) element.textContent = text;
  if (element.className !== kind) element.className = kind;
}

function cell(text, kind = "") {
  const td = document.createElement("td");
  td.textContent = text;
  td.className = kind;
  return td;
}

/** Fills the table of a section; says how many there are, and how many are not shown. */
function fill(id, list, cells) {
  const section = byId(id);
  const body = section.querySelector("tbody");
  const rows = list.rows.map((row) => {
    const tr = document.createElement("tr");
    tr.append(...cells(row));
    return tr;
  });
  if (rows.length === 0) {
    const none = cell(wanted.filter ? "none that the filter lets through" : "none", "empty");
    none.colSpan = section.querySelectorAll("th").length;
    const tr = document.createElement("tr");
    tr.append(none);
    rows.push(tr);
  }
  body.replaceChildren(...rows);
  say(section.querySelector(".count"), list.total.toLocaleString("en"), "count");
  const more = section.querySelector(".more");
  if (more) {
    const left = list.total - list.rows.length;
    more.hidden = left === 0;
    say(more, `and ${left.toLocaleString("en")} more: the filter finds them`, "more");
  }
}

function routeCells(row) {
  return [
    cell(row.host === "*" ? "any host" : row.host, "name"),
    cell(row.path, "name"),
    cell(row.kind, "quiet"),
    cell(row.fault ? `${row.service} (${row.fault})` : row.service, row.fault ? "name bad" : "name"),
    cell(row.ingress, "name"),
    cell(row.policies.join(", "), "quiet"),
  ];
}

function endpointCells(row) {
  const why = [];
  if (row.unhealthy !== null) why.push(`taken out by its health check: ${row.unhealthy}`);
  if (row.ejectedMs !== null) why.push(`ejected for another ${(row.ejectedMs / 1000).toFixed(1)} s`);
  const out = why.length > 0;
  return [
    cell(row.service, "name"),
    cell(row.address, "name"),
    cell(out ? why.join("; ") : "serves", out ? "bad" : "quiet"),
    cell(String(row.inFlight), "number"),
    cell(row.latencyMs === null ? "no answer yet" : row.latencyMs <= 1 ? "≤ 1 ms" : `${row.latencyMs} ms`, "number"),
    cell(String(row.connections), "number"),
    cell(row.protocol, "quiet"),
  ];
}

function certificateCells(row) {
  const kind = row.daysLeft < 0 ? "bad" : row.daysLeft < FEW_DAYS ? "warn" : "";
  const names = row.names.join(", ");
  return [
    cell(row.host ?? "all others", row.host === null ? "quiet" : "name"),
    cell(row.secret ?? "the default certificate", row.secret === null ? "quiet" : "name"),
    cell(row.covers ? names : `${names} (not for this host)`, row.covers ? "name" : "name bad"),
    cell(row.notAfter.slice(0, 10), kind),
    cell(row.daysLeft < 0 ? "expired" : row.daysLeft.toLocaleString("en"), `number ${kind}`.trim()),
  ];
}

function problemCells(row) {
  return [cell(row.ingress, "name"), cell(row.reason), cell(row.text)];
}

/** Requests per second since the last answer. */
function rates(status) {
  const now = { clockMs: status.clockMs, requests: new Map(status.requests) };
  const seconds = previous === null ? 0 : (now.clockMs - previous.clockMs) / 1000;
  // What is asked in between, for the filter's sake, is too close to tell.
  if (seconds >= 1) {
    let all = 0;
    for (const [name, count] of now.requests) {
      const rate = Math.max(0, count - previous.requests.get(name)) / seconds;
      all += rate;
      const shown = byId(`rate-${name}`);
      const isError = name === "5xx" || name === "none";
      if (shown) say(shown, format(rate), isError && rate > 0 ? "bad" : "");
    }
    say(byId("rate-all"), format(all));
    draw(all);
  }
  // A clock that runs backwards is another process's.
  if (previous === null || seconds < 0 || seconds >= 1) previous = now;
  say(byId("in-flight"), status.inFlight.toLocaleString("en"));
  say(byId("connections"), status.connections.toLocaleString("en"));
}

function format(rate) {
  return rate > 0 && rate < 100 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en");
}

function draw(rate) {
  course = [...course, rate].slice(-POINTS);
  const highest = Math.max(...course, 1);
  const points = course.map((value, at) => {
    const x = 240 - (course.length - 1 - at) * (240 / (POINTS - 1));
    return `${x.toFixed(1)},${(38 - (value / highest) * 36).toFixed(1)}`;
  });
  byId("course").firstElementChild.setAttribute("points", points.join(" "));
}

function pages(routes) {
  const last = routes.from + routes.rows.length;
  document.querySelector("nav").hidden = routes.from === 0 && last === routes.total;
  say(byId("place"), `${(routes.from + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${routes.total.toLocaleString("en")}`);
  byId("previous").disabled = routes.from === 0;
  byId("next").disabled = last === routes.total;
  byId("next").dataset.from = String(last);
  byId("previous").dataset.from = String(Math.max(0, routes.from - routes.most));
  // Those that were here are gone.
  if (routes.rows.length === 0) wanted.from = 0;
}

function show(status) {
  say(byId("version"), status.version);
  const number = status.problems.total;
  const problems = number === 0 ? "no problems" : number === 1 ? "1 problem" : `${number.toLocaleString("en")} problems`;
  const hosts = status.hosts === 1 ? "1 host" : `${status.hosts.toLocaleString("en")} hosts`;
  if (wanted.filter === "") say(byId("state"), `Serves ${hosts}, ${problems}`);
  else say(byId("state"), `Shows ${status.routes.total.toLocaleString("en")} routes with “${wanted.filter}”`);
  rates(status);
  fill("routes", status.routes, routeCells);
  pages(status.routes);
  fill("endpoints", status.endpoints, endpointCells);
  fill("certificates", status.certificates, certificateCells);
  fill("problems", status.problems, problemCells);
  byId("problems").hidden = number === 0;
}

async function ask() {
  clearTimeout(timer);
  const turn = ++asked;
  try {
    const answer = await fetch(`status.json?${new URLSearchParams(wanted)}`, { cache: "no-store" });
    const text = await answer.text();
    if (turn !== asked) return;
    if (!answer.ok) throw new Error(text.trim());
    show(JSON.parse(text));
  } catch (error) {
    if (turn !== asked) return;
    say(byId("state"), `No answer: ${error.message}. What is shown is old.`, "bad");
  }
  timer = setTimeout(ask, POLL_MS);
}

let pause = 0;
byId("filter").addEventListener("input", (event) => {
  wanted.filter = event.target.value.trim();
  wanted.from = 0;
  clearTimeout(pause);
  pause = setTimeout(ask, 200);
});
for (const id of ["previous", "next"]) {
  byId(id).addEventListener("click", (event) => {
    wanted.from = Number(event.target.dataset.from);
    ask();
  });
}
ask();

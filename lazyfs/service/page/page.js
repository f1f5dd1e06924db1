// What the page asks, and where the answers go.

// The key comes behind the # of the address, which no request carries; it stays in this tab, and not in its address.
if (location.hash.length > 1 && location.hash !== "#main") {
  sessionStorage.setItem("key", location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
}
const key = sessionStorage.getItem("key") ?? "";

/** A path for a query. */
const encoded = (path) => encodeURIComponent(path.toWellFormed?.() ?? path);

async function ask(path) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(9000) });
  if (!answer.ok) throw Object.assign(new Error((await answer.text()).trim()), { status: answer.status });
  return answer.json();
}

// ---- the numbers of the last minutes

let samples = [];
let bounds = null;
let names = false;
const AT = 0, READERS = 1, DISK = 2, STORE = 3, USED = 4, WAITS = 5, FOUND = 6, MISSED = 7, READS = 13, FIRST = 14;

const subtract = (after, before) => after.map((count, at) => count - before[at]);

/** The sample before the last one that is at least `span` seconds older, or the oldest. */
function before(at, span) {
  let found = at;
  while (found > 0 && samples[at][AT] - samples[found][AT] < span) found--;
  return samples[found];
}

/** Shares of the chunks that readers got between two samples: from memory, disk, S3; as `lazyfs top` has them. */
function hits(from, to) {
  const [used, disk, store] = [USED, FOUND, MISSED].map((one) => to[one] - from[one]);
  const memory = Math.max(0, used - disk - store);
  const all = memory + disk + store;
  return all ? [memory / all, disk / all, store / all] : [null, null, null];
}

const linear = (base, words) => (values) => {
  const top = roundUp(Math.max(1, ...values), base);
  return { place: (value) => 100 - (98 * value) / top, marks: [words(top), words(top / 2), "0"] };
};
const charts = {
  throughput: new Chart($("throughput"), [
    { name: "readers", label: "to readers", words: rate },
    { name: "disk", label: "from disk", words: rate },
    { name: "store", label: "from S3", words: rate },
  ], (values) => linear(1024, rate)([1024 * 1024, ...values])),
  hits: new Chart($("hits"), [
    { name: "memory", label: "memory", words: share },
    { name: "disk", label: "disk", words: share },
    { name: "store", label: "S3", words: share },
  ], () => ({ place: (value) => 100 - 98 * value, marks: ["100 %", "50 %", "0"] }), { stacked: true }),
  latency: new Chart($("latency"), [
    { name: "readers", label: "read, median", words: seconds },
    { name: "memory", label: "read, 99 %", words: seconds, dashed: true },
    { name: "store", label: "first byte of S3, median", words: seconds },
  ], (values) => {
    const [low, high] = [-5, Math.max(-1, ...values.map((one) => Math.ceil(Math.log10(one))))];
    const place = (value) => 100 - (98 * (Math.max(low, Math.log10(value)) - low)) / (high - low);
    return { place, marks: [seconds(10 ** high), seconds(10 ** ((low + high) / 2)), seconds(10 ** low)] };
  }, { area: false }),
};

function drawCharts() {
  const now = samples.at(-1)?.[AT] ?? 0;
  const span = samples.length && now - samples[0][AT] > 58 ? 300 : 60;
  for (const one of Object.values(charts)) one.stretch(span);
  say("throughput-when", `last ${span === 60 ? "minute" : "5 minutes"}`);
  const throughput = [], found = [], latency = [];
  samples.forEach((to, at) => {
    if (!at) return;
    const from = samples[at - 1], span = to[AT] - from[AT];
    throughput.push({ at: to[AT], values: [READERS, DISK, STORE].map((one) => (to[one] - from[one]) / span) });
    found.push({ at: to[AT], values: hits(from, to) });
    const ago = before(at, 10);
    const [reads, first] = [READS, FIRST].map((one) => subtract(to[one], ago[one]));
    latency.push({ at: to[AT], values: [
      quantile(bounds.reads, reads, 0.5), quantile(bounds.reads, reads, 0.99), quantile(bounds.first_byte, first, 0.5),
    ] });
  });
  charts.throughput.draw(throughput, now);
  charts.hits.draw(found, now);
  charts.latency.draw(latency, now);
}

function drawTiles(mount) {
  const last = samples.at(-1);
  if (!last) return;
  const from = before(samples.length - 1, 3), minute = before(samples.length - 1, 60);
  for (const [name, field] of [["readers", READERS], ["disk", DISK], ["store", STORE]]) {
    const span = last[AT] - from[AT];
    say(`now-${name}`, span ? rate((last[field] - from[field]) / span) : "–");
    say(`all-${name}`, `${bytes(last[field])} in all`);
  }
  const [memory, disk] = hits(minute, last);
  say("now-hits", memory === null ? "–" : share(memory + disk));
  const none = last.map((one) => (Array.isArray(one) ? one.map(() => 0) : 0));
  const ever = hits(none, last);
  say("all-hits", ever[0] === null ? "nothing was read yet" : `${share(ever[0] + ever[1])} since the start`);
  const reads = subtract(last[READS], minute[READS]);
  const median = quantile(bounds.reads, reads, 0.5);
  say("now-latency", median === null ? "–" : seconds(median));
  say("all-latency", median === null ? "median" : `median; 99 % in ${seconds(quantile(bounds.reads, reads, 0.99))}`);
  say("now-cache", bytes(mount.disk.used));
  say("all-cache", mount.disk.bound ? `of ${bytes(mount.disk.bound)} at most` : "");
}

// ---- loads

let start = -1;
$("starts").addEventListener("change", (event) => { start = Number(event.target.value); });

/** Loads that began within a minute of each other, newest last. */
function startsOf(files) {
  const found = [];
  for (const load of [...files].sort((one, other) => one.opened - other.opened)) {
    const last = found.at(-1);
    if (last && load.opened - last.at(-1).opened < 60) last.push(load);
    else found.push([load]);
  }
  return found;
}

function drawLoads(loads, now) {
  const starts = startsOf(loads.files);
  const began = (load) => new Date((now - (loads.now - load.opened)) * 1000).toLocaleTimeString();
  $("starts-label").hidden = starts.length < 2;
  each($("starts"), starts, (one) => one[0].opened, () => element("option"), (option, one) => {
    option.value = String(one[0].opened);
    say(option, `${began(one[0])}, ${plural(one.length, "file")}`);
  });
  const shownStart = starts.find((one) => one[0].opened === start) ?? starts.at(-1);
  const place = $("loads");
  if (!shownStart) {
    say("loads-when", "");
    place.replaceChildren(element("p", { class: "empty" }, "No file was opened yet."));
    return;
  }
  $("starts").value = String(shownStart[0].opened);
  const first = shownStart[0].opened, cold = first < 60, from = cold ? 0 : first;
  const ends = shownStart.flatMap((one) => [one.first, one.whole, one.closed ?? Math.min(loads.now, one.opened + 600)]).filter((one) => one !== null);
  const until = Math.max(from + 0.1, ...ends);
  say("loads-when", cold ? `from the start of the mount at ${began({ opened: 0 })}` : `from ${began(shownStart[0])}, ${seconds(first)} after the start of the mount`);
  const at = (time) => `${(100 * (time - from)) / (until - from)}%`;
  const piece = (kind, low, high) => {
    const made = element("i", { class: kind });
    made.style.left = at(low);
    made.style.width = `${(100 * Math.max(0, high - low)) / (until - from)}%`;
    return made;
  };
  const rows = shownStart.flatMap((load, number) => {
    const end = load.closed ?? until;
    const span = element("div", { class: "span", "aria-hidden": "true" }, piece("open", load.opened, end));
    if (load.whole === null || load.whole > load.opened) {
      const loaded = load.whole ?? (load.closed === null ? until : load.closed);
      span.append(piece("load", load.first ?? loaded, loaded));
    }
    if (load.first !== null) span.append(piece("wait", load.opened, load.first));
    if (cold && loads.ready !== null) span.append(piece("ready", loads.ready, loads.ready));
    const said = [
      `+${seconds(load.opened - from)}`,
      load.first === null ? "not read" : `first byte ${seconds(load.first - load.opened)}`,
      load.whole === null ? `${bytes(load.size)} not all here` : load.whole <= load.opened ? `${bytes(load.size)} was here` : `${bytes(load.size)} in ${seconds(load.whole - load.opened)}`,
    ];
    const name = load.path === null ? `file ${number + 1}` : shown(load.path);
    return [element("div", { class: "name", title: name }, element("bdi", {}, name)), span, element("div", { class: "said" }, said.join(" · "))];
  });
  const axis = element("div", { class: "axis", "aria-hidden": "true" }, ...[0, 0.5, 1].map((part) => element("span", {}, part ? `+${seconds((until - from) * part)}` : "0")));
  place.replaceChildren(...rows, axis);
}

// ---- the rest

function drawLists(mount, activity) {
  list($("sources"), mount.sources, "", (one) => [
    element("span", { class: one.answers === false ? "bad" : "good" }, one.answers === null ? "not asked yet" : one.answers ? "answers" : "in trouble"),
    ` ${one.name ? `${shown(one.name)}: ` : ""}${shown(one.url)}${one.endpoint_url ? ` at ${shown(one.endpoint_url)}` : ""}`
      + `; ${bytes(one.store.bytes_received)} in ${plural(one.store.get_requests, "GET")}${one.trouble ? `; ${shown(one.trouble)}` : ""}`,
  ]);
  const jobs = mount.jobs.map((job) => ({ words: `warming: ${plural(job.files_here, "file")} of ${job.files}, ${bytes(job.bytes_here)} of ${bytes(job.bytes)} (${job.step})`, part: job.bytes ? job.bytes_here / job.bytes : null }));
  if (mount.verified.under_way) jobs.push({ words: `verifying: ${plural(mount.verified.under_way, "object")}`, part: null });
  list($("jobs"), jobs, "None is running.", (job) => [job.words, bar(job.part)]);
  list($("requests"), activity.requests.slice(0, 8), "None in the last minute.", (one) => [
    `${seconds(one.seconds)}  ${one.what} `, element("bdi", { class: "path" }, one.key === null ? "" : shown(one.key) || "/"),
    one.size ? ` ${bytes(one.size)} from ${bytes(one.start)} on` : "",
    element("span", { class: one.failure ? "bad" : "faint" }, one.under_way ? "  under way" : one.failure ? `  ${one.failure}` : ""),
  ]);
  list($("words"), [...activity.words].reverse(), "None.", (one) => [
    element("span", { class: one.level === "warning" ? "faint" : "bad" }, `${new Date(one.time * 1000).toLocaleTimeString()} `),
    one.words === null ? one.level : shown(one.words),
  ]);
}

function drawHead(found) {
  const { mount, health } = found;
  say("health", health.ok ? "healthy" : "in trouble");
  $("health").className = `health ${health.ok ? "good" : "bad"}`;
  $("trouble").hidden = health.ok;
  say("trouble", health.ok ? "" : health.words);
  if (!mount) return;
  const several = mount.sources.length > 1;
  say("source", several ? plural(mount.sources.length, "source") : shown(mount.sources[0].url));
  say("mountpoint", `at ${shown(mount.mountpoint)}, up ${seconds(mount.uptime)}, ${plural(mount.open_files, "file")} open, ${plural(mount.failures, "failed read")}`);
  document.title = `${shown(mount.mountpoint)} – lazyfs`;
  say("footer", `lazyfs ${mount.version}, process ${mount.pid}; memory ${mount.memory.slots - mount.memory.free} of ${mount.memory.slots} MiB used. The same in a terminal: lazyfs top.`);
}

let rounds = 0;
async function round() {
  const found = await ask(`/cache/recent?since=${Math.max(0, samples.at(-1)?.[AT] ?? 0)}`);
  if (found.mount && samples.length && found.mount.uptime < samples.at(-1)[AT]) samples = []; // mounted anew
  bounds = found.bounds;
  names = found.names;
  $("nameless").hidden = names;
  $("map-card").hidden = !names;
  samples = [...samples, ...found.samples].slice(-300);
  drawHead(found);
  drawCharts();
  if (found.mount) drawTiles(found.mount);
  if (found.activity) {
    drawFiles(found.activity);
    drawLoads(found.loads, found.now);
    drawLists(found.mount, found.activity);
  }
  if (found.health.ok) {
    await lookAtFile();
    if (rounds++ % 3 === 0) await lookAtTree();
  }
  document.documentElement.dataset.rounds = String(rounds);
}

// Nobody is asked while nobody looks.
const visible = () => new Promise((done) => {
  if (!document.hidden) done();
  else document.addEventListener("visibilitychange", () => done(), { once: true });
});
const pause = (time) => new Promise((done) => setTimeout(done, time));

(async () => {
  for (;;) {
    await visible();
    const began = performance.now();
    try {
      await round();
    } catch (error) {
      say("health", "does not answer");
      $("health").className = "health bad";
      $("trouble").hidden = false;
      say("trouble", `The mount does not answer: it may have ended (${error.message}).`);
      if (!(error instanceof TypeError || error.name === "TimeoutError" || error.status)) console.error(error);
      await pause(1500);
    }
    await pause(Math.max(200, 1000 - (performance.now() - began)));
  }
})();

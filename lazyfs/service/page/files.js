// The files of the mount: the map of one, those that are read, the tree.

// ---- the map of a file

let chosen = null;
let picked = false;
let map = null;

function choose(path, byHand) {
  chosen = path;
  picked = byHand;
  $("map-follow").checked = !picked;
  if (byHand) $("map-card").scrollIntoView({ block: "nearest" });
  drawMap();
}
$("map-follow").addEventListener("change", (event) => { picked = !event.target.checked; });

async function lookAtFile() {
  if (!chosen || !names) return;
  const path = chosen;
  try {
    const found = await ask(`/cache/file?path=${encoded(path)}`);
    if (path === chosen) map = found;
  } catch (error) {
    if (!error.status) throw error;
    if (path === chosen) map = { path, failed: error.message };
  }
  drawMap();
}

function drawMap() {
  $("map-follow-label").hidden = !chosen;
  $("map-name").textContent = chosen === null ? "no file was read yet" : shown(chosen);
  const found = map?.path === chosen && !map?.failed ? map : null;
  const canvas = $("map");
  canvas.hidden = !found || !found.chunks;
  for (const one of ["disk", "memory", "coming", "absent"]) say(`map-${one}`, "");
  if (!found) {
    say("map-facts", map?.path === chosen && map?.failed ? map.failed : "");
    return;
  }
  const sum = (counts) => counts.reduce((all, one) => all + one, 0);
  const each_ = found.per_cell > 1 ? `, ${found.per_cell} in each square` : "";
  const checked = { no: "", none: "; no digest to compare with", wrong: "; its bytes are wrong" }[found.verified];
  say("map-facts", `${bytes(found.cached)} of ${bytes(found.size)} on disk; ${plural(found.chunks, "chunk")} of `
    + `${bytes(found.chunk_size)}${each_}${checked ?? `; verified by ${found.verified}`}`);
  const here = found.disk.map((count, at) => {
    const all = Math.min(found.per_cell, found.chunks - at * found.per_cell);
    return Math.min(all, Math.max(count, found.memory[at]) + found.coming[at]);
  });
  for (const one of ["disk", "memory", "coming"]) say(`map-${one}`, sum(found[one]).toLocaleString("en"));
  say("map-absent", Math.max(0, found.chunks - sum(here)).toLocaleString("en"));
  const width = canvas.parentElement.clientWidth - 2 * parseFloat(getComputedStyle(canvas.parentElement).paddingLeft);
  if (canvas.hidden || width <= 0) return;
  const cells = found.disk.length;
  const pitch = Math.max(8, Math.min(20, Math.floor(Math.sqrt((width * 160) / cells))));
  const columns = Math.floor(width / pitch);
  const height = Math.ceil(cells / columns) * pitch;
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const colour = Object.fromEntries(["track", "disk", "memory", "store"].map((one) => [one, style.getPropertyValue(`--${one}`)]));
  pen.scale(ratio, ratio);
  const side = pitch - 2;
  for (let at = 0; at < cells; at++) {
    const [x, y] = [(at % columns) * pitch, Math.floor(at / columns) * pitch];
    const all = Math.min(found.per_cell, found.chunks - at * found.per_cell);
    const [disk, memory, coming] = [found.disk, found.memory, found.coming].map((counts) => counts[at] / all);
    pen.fillStyle = colour.track;
    pen.fillRect(x, y, side, side);
    pen.fillStyle = colour.disk;
    if (disk) pen.fillRect(x, y + side * (1 - disk), side, side * disk);
    if (coming) {
      pen.strokeStyle = colour.store;
      pen.lineWidth = 2;
      pen.strokeRect(x + 1, y + 1, side - 2, side - 2);
    }
    if (memory) {
      pen.beginPath();
      pen.arc(x + side / 2, y + side / 2, side * 0.24 * Math.sqrt(Math.max(0.3, memory)) + 0.6, 0, 7);
      pen.fillStyle = disk ? colour.track : colour.memory;
      pen.fill();
      pen.beginPath();
      pen.arc(x + side / 2, y + side / 2, side * 0.24 * Math.sqrt(Math.max(0.3, memory)), 0, 7);
      pen.fillStyle = colour.memory;
      pen.fill();
    }
  }
}
addEventListener("resize", drawMap);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);

// ---- tables of files

function amountCell() {
  return element("td", { class: "amount" }, element("div", {}, bar(0), element("span"), element("span", { class: "faint" })));
}
function setAmount(cell, cached, size, whole = true) {
  const [made, amount, part] = cell.firstChild.children;
  const known = whole ? (size ? cached / size : 1) : null;
  setBar(made, known);
  say(amount, bytes(cached));
  say(part, known === null ? "" : share(known));
}

const earlier = new Map();
function drawFiles(activity) {
  $("files-card").hidden = !names;
  const busy = activity.files.find((file) => file.handles) ?? activity.files[0];
  if (busy && !picked && busy.path !== chosen) choose(busy.path, false);
  const body = $("files").tBodies[0];
  each(body, activity.files, (file) => file.path, (file) => element("tr", {},
    element("td", {}, element("button", { type: "button" }, shown(file.path))), amountCell(),
    ...[0, 1, 2].map(() => element("td", { class: "num" }))), (row, file) => {
    const [name, amount, size, now, streams] = row.children;
    name.firstChild.onclick = () => choose(file.path, true);
    name.classList.toggle("closed", !file.handles);
    setAmount(amount, file.here, file.size);
    say(size, bytes(file.size));
    const last = earlier.get(file.path) ?? { at: activity.at, read: file.read };
    const span = activity.at - last.at;
    if (span > 0.5 || !earlier.has(file.path)) {
      const now_ = span > 0 ? Math.max(0, file.read - last.read) / span : 0;
      earlier.set(file.path, { at: activity.at, read: file.read, rate: now_ });
    }
    say(now, file.handles ? rate(earlier.get(file.path).rate ?? 0) : "closed");
    say(streams, String(file.streams));
    row.classList.toggle("chosen", file.path === chosen);
  });
  if (!activity.files.length) body.replaceChildren(element("tr", {}, element("td", { colspan: "5", class: "empty" }, "No file was opened yet.")));
}

// ---- the tree

let folder = "";

function open_(path) {
  folder = path;
  lookAtTree().catch(() => {}); // the next round says so
}

function drawCrumbs() {
  const parts = folder ? folder.split("/") : [];
  const nodes = [element("button", { type: "button" }, "all")];
  nodes[0].onclick = () => open_("");
  parts.forEach((name, at) => {
    const path = parts.slice(0, at + 1).join("/");
    const button = element("button", { type: "button", ...(at === parts.length - 1 ? { "aria-current": "true" } : {}) }, shown(name));
    button.onclick = () => open_(path);
    nodes.push(element("span", { "aria-hidden": "true" }, "/"), button);
  });
  const before_ = $("crumbs").dataset.path;
  if (before_ !== `/${folder}`) {
    $("crumbs").dataset.path = `/${folder}`;
    $("crumbs").replaceChildren(...nodes);
  }
}

async function lookAtTree() {
  $("tree-card").hidden = !names;
  if (!names) return;
  const path = folder;
  drawCrumbs();
  let found;
  try {
    found = await ask(`/cache/tree?path=${encoded(path)}`);
  } catch (error) {
    if (!error.status) throw error;
    if (path === folder) say("tree-note", error.message);
    return;
  }
  if (path !== folder) return;
  const below = path ? `${path}/` : "";
  each($("tree").tBodies[0], found.entries, (one) => below + one.name, (one) => {
    const button = element("button", { type: "button" }, shown(one.name) + (one.kind === "directory" ? "/" : ""));
    button.onclick = () => (one.kind === "directory" ? open_(below + one.name) : choose(below + one.name, true));
    return element("tr", {}, element("td", {}, button), amountCell(), ...[0, 1].map(() => element("td", { class: "num" })));
  }, (row, one) => {
    const whole = one.kind === "file" || one.whole;
    setAmount(row.children[1], one.cached, one.size, whole);
    row.children[2].classList.toggle("words", !whole && !one.size);
    say(row.children[2], whole ? bytes(one.size) : one.size ? `${bytes(one.size)} or more` : "not listed yet");
    say(row.children[3], one.kind === "file" ? "" : one.files.toLocaleString("en"));
  });
  const age = found.listed_at === null ? "" : `Listed ${seconds(Math.max(0, Date.now() / 1000 - found.listed_at))} ago.`;
  const more = found.more ? ` ${plural(found.more, "more name")} are not shown.` : "";
  say("tree-note", found.entries.length ? `${age}${more}` : `Nothing is here. ${age}`);
}


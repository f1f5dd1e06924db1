"use strict";
// How numbers and charts are shown. Text is set as text, never as HTML; the browser is told to refuse anything else.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; a string becomes text. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function drawn(tag, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** Set a text only where it changes, so that nothing is announced or selected anew. */
function say(place, text) {
  const found = typeof place === "string" ? $(place) : place;
  if (found.textContent !== text) found.textContent = text;
}

/** Children for `items`, each kept by its key, so that focus and selection stay: `make` one, then `update` it. */
function each(parent, items, key, make, update) {
  const before = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, at) => {
    const name = String(key(item, at));
    let child = before.get(name);
    if (child) before.delete(name);
    else {
      child = make(item);
      child.dataset.key = name;
    }
    if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] ?? null);
    update(child, item);
  });
  for (const child of before.values()) child.remove();
}

/** A list that says so if it is empty. */
function list(parent, items, nothing, fill) {
  const shown = items.length ? items : [null];
  parent.replaceChildren(...shown.map((item) => {
    const line = element("li", item === null ? { class: "empty" } : {});
    line.append(...(item === null ? [nothing] : fill(item)));
    return line;
  }));
}

// What is not to be seen in a name, or turns the line around, is written as what it is.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu;
const shown = (name) => name.replace(UNSEEN, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

function bytes(count) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (count < 1000) return `${unit === "B" || count >= 100 ? Math.round(count) : count.toFixed(1)} ${unit}`;
    count /= 1024;
  }
  return `${count.toFixed(1)} TiB`;
}
const rate = (count) => `${bytes(count)}/s`;

function seconds(count) {
  if (count < 0.001) return `${Math.round(count * 1e6)} µs`;
  if (count < 0.01) return `${(count * 1e3).toFixed(1)} ms`;
  if (count < 1) return `${Math.round(count * 1e3)} ms`;
  if (count < 10) return `${count.toFixed(2)} s`;
  if (count < 120) return `${Math.round(count)} s`;
  if (count < 7200) return `${Math.round(count / 60)} min`;
  return count < 172800 ? `${(count / 3600).toFixed(1)} h` : `${Math.round(count / 86400)} days`;
}

/** A share of 1; 100 % only when it is all. */
const share = (part) => (part === null ? "–" : part > 0 && part < 0.01 ? "< 1 %" : `${Math.floor(part * 100 + 1e-9)} %`);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

/** The duration below which `part` of those counted by bucket were; null of none. In a bucket they are taken as even. */
function quantile(bounds, counts, part) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  let left = all * part;
  if (!all) return null;
  for (let at = 0; at < bounds.length; at++) {
    if (left <= counts[at] && counts[at]) {
      const from = at ? bounds[at - 1] : 0;
      return from + (bounds[at] - from) * (left / counts[at]);
    }
    left -= counts[at];
  }
  return bounds.at(-1);
}

function bar(part) {
  const made = element("span", { class: "bar", "aria-hidden": "true" }, element("span"));
  setBar(made, part);
  return made;
}
function setBar(made, part) {
  made.classList.toggle("unknown", part === null);
  made.firstChild.style.width = `${100 * (part ?? 0)}%`;
}

/** The next round number, in steps that suit bytes if `base` is 1024. */
function roundUp(value, base) {
  let unit = 1;
  while (value / unit >= base) unit *= base;
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000].find((one) => one * unit >= value);
  return step * unit;
}

const WIDTH = 300;

/**
 * A chart of the last minutes. `lines` are {name, label, words(value), dashed}; `scale` gives {top, place(value), marks}
 * for all values shown. What the pointer is at is told in the legend; without one, the newest.
 */
class Chart {
  constructor(place, lines, scale, { stacked = false, area = true } = {}) {
    this.lines = lines;
    this.scale = scale;
    this.stacked = stacked;
    this.area = area;
    this.span = WIDTH;
    this.at = null;
    this.marks = element("div", { class: "scale", "aria-hidden": "true" });
    this.picture = drawn("svg", { viewBox: `0 0 ${WIDTH} 100`, preserveAspectRatio: "none", role: "img" });
    this.grid = [0.5, 50].map((y) => drawn("line", { x1: 0, x2: WIDTH, y1: y, y2: y }));
    this.pointer = drawn("line", { class: "at", y1: 0, y2: 100, visibility: "hidden" });
    this.paths = lines.map((line) => {
      const group = drawn("g", { class: line.name });
      const area = drawn("path", { class: stacked ? "solid" : "area" });
      const stroke = drawn("path", line.dashed ? { "stroke-dasharray": "5 4" } : {});
      group.append(area, ...(stacked ? [] : [stroke]));
      return { group, area, stroke };
    });
    this.picture.append(...this.grid, ...this.paths.map((one) => one.group).reverse(), this.pointer);
    this.times = element("div", { class: "times", "aria-hidden": "true" });
    this.values = lines.map(() => element("b", {}, "–"));
    this.when = element("li", { class: "faint" });
    const legend = element("ul", { class: "legend" }, ...lines.map((line, at) => element("li", {},
      element("i", { class: `${stacked ? "block" : "line"} ${line.name}${line.dashed ? " dashed" : ""}` }),
      `${line.label} `, this.values[at])), this.when);
    place.append(this.marks, this.picture, this.times, legend);
    this.picture.addEventListener("pointermove", (event) => {
      const box = this.picture.getBoundingClientRect();
      this.at = ((event.clientX - box.left) / box.width) * WIDTH;
      this.tell();
    });
    this.picture.addEventListener("pointerleave", () => {
      this.at = null;
      this.tell();
    });
  }

  /** Show so many seconds. */
  stretch(span) {
    this.span = span;
    const marks = span > 60 ? ["5 min ago", "4", "3", "2", "1", "now"] : ["60 s ago", "40", "20", "now"];
    if (this.times.childElementCount !== marks.length) {
      this.times.replaceChildren(...marks.map((text) => element("span", {}, text)));
    }
  }

  /** `points` are {at, values}, oldest first, with null for what is not known; `now` is at the right edge. */
  draw(points, now) {
    const second = WIDTH / this.span;
    this.points = points.map((one) => ({ ago: now - one.at, x: WIDTH - (now - one.at) * second, values: one.values }))
      .filter((one) => one.x >= -5);
    const values = this.points.flatMap((one) => one.values).filter((one) => one !== null);
    const { place, marks } = this.scale(values);
    this.marks.replaceChildren(...marks.map((text) => element("span", {}, text)));
    this.lines.forEach((_, line) => {
      let stroke = "", area = "", start = null, last = null;
      const close = () => {
        if (start !== null && this.area) area += `L${last} 100L${start} 100Z`;
        start = last = null;
      };
      for (const { x, values: found } of this.points) {
        const value = found[line];
        if (this.stacked) {
          if (value === null) continue;
          const below = found.slice(0, line).reduce((sum, one) => sum + one, 0);
          const [low, high] = [place(below), place(below + value)];
          area += `M${(x - 1.05 * second).toFixed(2)} ${low.toFixed(2)}V${high.toFixed(2)}H${x.toFixed(2)}V${low.toFixed(2)}Z`;
          continue;
        }
        if (value === null || (last !== null && x - last > 12 * second)) close();
        if (value === null) continue;
        const to = `${x.toFixed(2)} ${place(value).toFixed(2)}`;
        stroke += `${start === null ? "M" : "L"}${to}`;
        area += start === null ? `M${x.toFixed(2)} 100L${to}` : `L${to}`;
        start ??= x;
        last = x.toFixed(2);
      }
      close();
      this.paths[line].area.setAttribute("d", this.area ? area : "");
      this.paths[line].stroke.setAttribute("d", stroke);
    });
    this.tell();
  }

  tell() {
    const points = this.points ?? [];
    let found = points.at(-1);
    if (this.at !== null) {
      for (const one of points) if (Math.abs(one.x - this.at) < Math.abs(found.x - this.at)) found = one;
    }
    this.lines.forEach((line, at) => {
      const value = found?.values[at] ?? null;
      say(this.values[at], value === null ? "–" : line.words(value));
    });
    const shownAt = this.at !== null && found;
    say(this.when, shownAt ? `${seconds(found.ago)} ago` : "");
    this.pointer.setAttribute("visibility", shownAt ? "visible" : "hidden");
    if (shownAt) for (const x of ["x1", "x2"]) this.pointer.setAttribute(x, found.x);
    if (this.at === null) {
      const words = this.lines.map((line, at) => `${line.label} ${this.values[at].textContent}`);
      this.picture.setAttribute("aria-label", `Now: ${words.join(", ")}`);
    }
  }
}

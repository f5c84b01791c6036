// What most models write of Markdown, as elements: headings, lists, code, bold, italics, links to the web. The rest stays text.

import { element } from "./elements.js";

const FENCE = /^\s*(```+|~~~+)\s*([\w+-]*)\s*$/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^\s*(?:[-*+]|(\d+)[.)])\s+(.*)$/;
const INLINE = /`([^`]+)`|\*\*([^*]+)\*\*|__([^_]+)__|\*([^*\s][^*]*)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/g;

export function rendered(text) {
  const blocks = [];
  const lines = text.split("\n");
  let paragraph = [];
  const close = () => {
    if (paragraph.length) blocks.push(element("p", {}, ...inline(paragraph.join("\n"))));
    paragraph = [];
  };
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (fence) {
      close();
      const code = [];
      for (at++; at < lines.length && !lines[at].trim().startsWith(fence[1]); at++) code.push(lines[at]);
      blocks.push(element("pre", { tabindex: "0" }, element("code", {}, code.join("\n"))));
    } else if (heading) {
      close();
      blocks.push(element(`h${Math.min(6, heading[1].length + 2)}`, {}, ...inline(heading[2])));
    } else if (ITEM.test(line)) {
      close();
      const ordered = ITEM.exec(line)[1] !== undefined;
      const items = [];
      for (; at < lines.length; at++) {
        const item = ITEM.exec(lines[at]);
        if (item && (item[1] !== undefined) === ordered) items.push({ number: item[1], lines: [item[2]] });
        else if (items.length && /^\s+\S/.test(lines[at]) && !item) items.at(-1).lines.push(lines[at].trim());
        else break;
      }
      at--;
      blocks.push(element(ordered ? "ol" : "ul", {}, ...items.map((item) => element("li", { value: item.number }, ...inline(item.lines.join("\n"))))));
    } else if (line.trim() === "") {
      close();
    } else {
      paragraph.push(line);
    }
  }
  close();
  return blocks;
}

function inline(text) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(INLINE)) {
    parts.push(...broken(text.slice(end, found.index)));
    const [, code, bold, strong, italic, name, url] = found;
    if (code !== undefined) parts.push(element("code", {}, code));
    else if (bold ?? strong) parts.push(element("strong", {}, bold ?? strong));
    else if (italic !== undefined) parts.push(element("em", {}, italic));
    else parts.push(element("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, name));
    end = found.index + found[0].length;
  }
  return [...parts, ...broken(text.slice(end))];
}

function broken(text) {
  return text.split("\n").flatMap((line, place) => (place ? [element("br"), line] : [line]));
}

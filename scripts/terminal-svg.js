// Draws what a terminal shows as an SVG picture; docs/live-view.svg was made with it, in tmux, while a migration ran:
//   tmux capture-pane -e -p | node scripts/terminal-svg.js "The live view" > docs/live-view.svg
import { readFileSync } from "node:fs";

const COLUMN = 8.4;
const LINE = 19;
const MARGIN = 16;
const ESC = String.fromCharCode(27);

const title = process.argv[2] ?? "A terminal";
const text = readFileSync(0, "utf8").trimEnd();
const lines = text.split("\n");
const columns = Math.max(...lines.map((line) => line.replaceAll(new RegExp(`${ESC}\\[[0-9;]*m`, "g"), "").length));
const width = Math.ceil(columns * COLUMN + 2 * MARGIN);
const height = lines.length * LINE + 2 * MARGIN;

// A style lasts until it is changed, beyond the line's end too.
let style = "";
const drawn = lines.map((line, index) => {
  const spans = line.split(ESC).map((part, at) => {
    const [, codes, words] =
      at === 0 ? ["", undefined, part] : (/^\[([0-9;]*)m(.*)$/.exec(part) ?? ["", undefined, part]);
    if (codes !== undefined) style = styleAfter(style, codes);
    return words === "" ? "" : `<tspan${style}>${escapeXml(words)}</tspan>`;
  });
  const y = MARGIN + (index + 0.75) * LINE;
  return `  <text x="${MARGIN}" y="${y}" xml:space="preserve">${spans.join("")}</text>`;
});

process.stdout.write(`<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}"
  font-family="ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace" font-size="14" fill="#d4d4d4">
  <title>${escapeXml(title)}</title>
  <rect width="100%" height="100%" rx="8" fill="#1e1e1e"/>
${drawn.join("\n")}
</svg>
`);

/** Bold, faint, and back to normal are all that the live view uses. */
function styleAfter(before, codes) {
  return codes.split(";").reduce((now, code) => {
    if (code === "1") return ' font-weight="bold"';
    if (code === "2") return ' fill="#8a8a8a"';
    return code === "0" || code === "" ? "" : now;
  }, before);
}

function escapeXml(words) {
  return words.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

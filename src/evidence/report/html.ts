import { escaped } from "../../xml.js";
import { type Block, isLeft, type ReportDocument, type TableBlock } from "./document.js";

/** Nothing is loaded from anywhere, and nothing runs. */
const POLICY = "default-src 'none'; style-src 'unsafe-inline'";

const STYLE = `
:root{color-scheme:light dark;--ink:#1a1a1a;--paper:#fff;--faint:#dcdfe4;--soft:#f4f5f7;--warn:#8a4b00}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--paper:#14171c;--faint:#3a3f48;--soft:#1e222a;--warn:#f0b060}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
caption{text-align:left;padding:.3rem 0;font-style:italic}th,td{padding:.2rem .7rem;border-bottom:1px solid var(--faint);text-align:right;white-space:nowrap}
th.l,td.l{text-align:left}pre{background:var(--soft);padding:.7rem;overflow-x:auto}
figure{margin:1.5rem 0}figure svg{max-width:100%;height:auto}figcaption{font-style:italic}
.warning{border-left:4px solid var(--warn);padding:.3rem .8rem;background:var(--soft)}
@media print{body{max-width:none;margin:0}}
`.trim();

/** Returns a report as one HTML file that needs no other file and has no script. Ends with a newline. */
export function htmlReport({ title, blocks }: ReportDocument): string {
  return [
    "<!DOCTYPE html>",
    '<html lang="en">',
    "<head>",
    '<meta charset="utf-8">',
    `<meta http-equiv="Content-Security-Policy" content="${POLICY}">`,
    '<meta name="viewport" content="width=device-width">',
    `<title>${escaped(title)}</title>`,
    `<style>${STYLE}</style>`,
    "</head>",
    "<body>",
    "<main>",
    `<h1>${escaped(title)}</h1>`,
    ...blocks.map(blockHtml),
    "</main>",
    "</body>",
    "</html>",
    "",
  ].join("\n");
}

function blockHtml(block: Block): string {
  switch (block.kind) {
    case "heading":
      return `<h2>${escaped(block.text)}</h2>`;
    case "text":
      return `<p>${escaped(block.text)}</p>`;
    case "warning":
      return `<p class="warning" role="note">${escaped(block.text)}</p>`;
    case "list":
      return ["<ul>", ...block.items.map((item) => `<li>${escaped(item)}</li>`), "</ul>"].join("\n");
    case "code":
      return `<pre><code>${block.text.split("\n").map(escaped).join("\n")}</code></pre>`;
    case "table":
      return tableHtml(block);
    case "figure":
      return `<figure>\n${block.svg}\n<figcaption>${escaped(block.caption)}</figcaption>\n</figure>`;
  }
}

function tableHtml(table: TableBlock): string {
  const { caption, head, rows } = table;
  const align = (column: number) => (isLeft(table, column) ? ' class="l"' : "");
  const row = (cells: readonly string[]) =>
    `<tr>${head.map((_, column) => `<td${align(column)}>${escaped(cells[column] ?? "")}</td>`).join("")}</tr>`;
  return [
    '<div class="wide" tabindex="0"><table>',
    `<caption>${escaped(caption)}</caption>`,
    `<thead><tr>${head.map((name, column) => `<th scope="col"${align(column)}>${escaped(name)}</th>`).join("")}</tr></thead>`,
    "<tbody>",
    ...rows.map(row),
    "</tbody></table></div>",
  ].join("\n");
}

/*
 * Elements without a framework. Text is set as text, never as HTML: names come from scenarios and from the store.
 */

type Child = Node | string | null | undefined | false;
type Attributes = Readonly<Record<string, string | number | boolean | null | undefined | ((event: Event) => void)>>;

/** An element with attributes (`onclick` and the like as functions; false, null: left out) and children. */
export function h<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  attributes: Attributes = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[Name] {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key.replace(/^on/, ""), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, String(value));
  }
  for (const child of children) if (child !== null && child !== undefined && child !== false) element.append(child);
  return element;
}

/** Sets an element's text where it differs: layout is left alone otherwise. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** A cell of a table: text, or an element; numbers are aligned by `numeric`. */
export interface Column<Row> {
  readonly title: string;
  /** What the title leaves open, shown where it is pointed at. */
  readonly hint?: string;
  readonly numeric?: boolean;
  cell(row: Row): Child;
}

/** A table with a caption, in a box of its own that scrolls where the window is narrow. */
export function dataTable<Row>(caption: string, columns: readonly Column<Row>[], rows: readonly Row[]): HTMLElement {
  const numeric = (column: Column<Row>) => (column.numeric === true ? "number" : null);
  const head = columns.map((column) =>
    h("th", { scope: "col", class: numeric(column), title: column.hint }, column.title),
  );
  const body = rows.map((row) =>
    h(
      "tr",
      {},
      ...columns.map((column, index) =>
        index === 0
          ? h("th", { scope: "row" }, column.cell(row))
          : h("td", { class: numeric(column) }, column.cell(row)),
      ),
    ),
  );
  const table = h(
    "table",
    {},
    h("caption", {}, caption),
    h("thead", {}, h("tr", {}, ...head)),
    h("tbody", {}, ...body),
  );
  return h("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: 0 }, table);
}

/** What is shown where there is nothing: what it is, and how to get it. */
export function emptyState(title: string, ...what: readonly Child[]): HTMLElement {
  return h("div", { class: "empty" }, h("h2", {}, title), h("p", {}, ...what));
}

/** A figure with its name. */
export function tile(name: string, value: Child, note?: Child): HTMLElement {
  return h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}, value, note && h("span", { class: "note" }, note)));
}

/** A section with a heading, and a sentence on what is seen. */
export function section(title: string, about: string | null, ...content: readonly Child[]): HTMLElement {
  return h(
    "section",
    { class: "card" },
    h("h2", {}, title),
    about !== null && h("p", { class: "about" }, about),
    ...content,
  );
}

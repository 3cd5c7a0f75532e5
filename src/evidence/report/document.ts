/** A report in no format yet: blocks in reading order. All text is plain. */
export interface ReportDocument {
  readonly title: string;
  readonly blocks: readonly Block[];
}

/** A part of a report. */
export type Block =
  | { readonly kind: "heading"; readonly text: string }
  | { readonly kind: "text"; readonly text: string }
  /** What a reader must know before trusting the figures. */
  | { readonly kind: "warning"; readonly text: string }
  | { readonly kind: "list"; readonly items: readonly string[] }
  /** A command, or output. */
  | { readonly kind: "code"; readonly text: string }
  | TableBlock
  | FigureBlock;

/** A table with a caption. */
export interface TableBlock {
  readonly kind: "table";
  readonly caption: string;
  readonly head: readonly string[];
  /** A row shorter than the head leaves its last cells empty. */
  readonly rows: readonly (readonly string[])[];
  /** Indices of the left-aligned columns. Default: only the first. */
  readonly left?: readonly number[];
}

/** A figure with a caption. */
export interface FigureBlock {
  readonly kind: "figure";
  /** The figure's name, from which its file is named: lower-case letters, digits and '-'. */
  readonly name: string;
  /** The figure, as made by the functions of plot/. */
  readonly svg: string;
  readonly caption: string;
}

/** True where a table's column holds text rather than quantities. */
export function isLeft({ left = [0] }: Pick<TableBlock, "left">, column: number): boolean {
  return left.includes(column);
}

import { safeText } from "./safe-text.js";

/** An XML element; its attributes keep their order. */
export interface XmlElement {
  readonly name: string;
  readonly attributes: Readonly<Record<string, string>>;
  readonly children: readonly XmlNode[];
}

/** An element, a comment or a text. */
export type XmlNode = XmlElement | { readonly comment: string } | { readonly text: string };

/** An element, for building trees of them. */
export function element(
  name: string,
  attributes: Readonly<Record<string, string>> = {},
  children: readonly XmlNode[] = [],
): XmlElement {
  return { name, attributes, children };
}

/**
 * Returns the tree as text, with two spaces per level, and attributes in single quotes as libvirt writes them. Ends without a
 * newline. An element that contains text is on one line, because blanks beside text matter.
 */
export function xmlText(node: XmlNode, indent = ""): string {
  if ("text" in node) return `${indent}${escaped(node.text)}`;
  if ("comment" in node) return `${indent}<!-- ${commentText(node.comment)} -->`;
  const { name, attributes, children } = node;
  const open = Object.entries(attributes).reduce((text, [key, value]) => `${text} ${key}='${escaped(value)}'`, name);
  if (children.length === 0) return `${indent}<${open}/>`;
  if (children.some((child) => "text" in child)) {
    return `${indent}<${open}>${children.map((child) => xmlText(child)).join("")}</${name}>`;
  }
  const inner = children.map((child) => xmlText(child, `${indent}  `));
  return [`${indent}<${open}>`, ...inner, `${indent}</${name}>`].join("\n");
}

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  "'": "&apos;",
  '"': "&quot;",
};

/** Text as it stands in XML and in HTML, in an element or an attribute's value; safe, which leaves out what XML can't express. */
export function escaped(value: string): string {
  return safeText(value, Number.POSITIVE_INFINITY).replace(/[&<>'"]/g, (character) => ENTITIES[character] ?? character);
}

/** Two hyphens may not stand in a comment, nor one at its end. */
function commentText(text: string): string {
  return safeText(text, Number.POSITIVE_INFINITY)
    .replace(/-(?=-|$)/g, "- ")
    .trimEnd();
}

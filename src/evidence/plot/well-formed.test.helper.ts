/** An element of a document that was taken apart. */
export interface ParsedElement {
  readonly name: string;
  readonly attributes: Readonly<Record<string, string>>;
  readonly children: ParsedElement[];
  text: string;
}

const TOKEN = /<!--[\s\S]*?-->|<\/([A-Za-z:]+)>|<([A-Za-z:]+)((?:\s+[A-Za-z0-9:-]+='[^'<]*')*)\s*(\/?)>|([^<]+)/y;

/**
 * Takes a small XML document apart, as strictly as a parser: one root, elements that end in the opposite order, attributes
 * once each and quoted, no stray `<` or `&`. @throws Error where it is not well-formed
 */
export function parseXml(text: string): ParsedElement {
  const root: ParsedElement = { name: "", attributes: {}, children: [], text: "" };
  const open = [root];
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < text.length) {
    const at = TOKEN.lastIndex;
    const token = TOKEN.exec(text);
    if (token === null) throw new Error(`not XML at ${at}: ${text.slice(at, at + 60)}`);
    const [, end, start, attributes, empty, words] = token;
    const current = open[open.length - 1];
    if (end !== undefined) {
      if (current.name !== end) throw new Error(`</${end}> ends <${current.name}>`);
      open.pop();
    } else if (start !== undefined) {
      const element = { name: start, attributes: attributesOf(attributes), children: [], text: "" };
      current.children.push(element);
      if (empty === "") open.push(element);
    } else if (words !== undefined) current.text += unescaped(words);
  }
  if (open.length !== 1) throw new Error(`<${open[open.length - 1].name}> does not end`);
  if (root.children.length !== 1 || root.text.trim() !== "") throw new Error("a document has one root");
  return root.children[0];
}

/** The element and all in it. */
export function allElements(element: ParsedElement): ParsedElement[] {
  return [element, ...element.children.flatMap(allElements)];
}

function attributesOf(text: string): Record<string, string> {
  const found: Record<string, string> = {};
  for (const [, name, value] of text.matchAll(/([A-Za-z0-9:-]+)='([^']*)'/g)) {
    if (Object.hasOwn(found, name)) throw new Error(`attribute ${name} is there twice`);
    found[name] = unescaped(value);
  }
  return found;
}

const ENTITIES: Readonly<Record<string, string>> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };

function unescaped(text: string): string {
  return text.replace(/&(\w*;?)/g, (_, name: string) => {
    const character = name.endsWith(";") ? ENTITIES[name.slice(0, -1)] : undefined;
    if (character === undefined) throw new Error(`&${name} is no entity`);
    return character;
  });
}

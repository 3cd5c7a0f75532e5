import { createHash } from "node:crypto";
import { type Node, parse } from "acorn";

/*
 * How mutants are made: by rule, from the syntax tree of a built file. A rule looks at one node and proposes texts to put
 * in the place of a part of it. Rules know nothing of what the code is for, with one exception: atomic operations become
 * the plain sequences that a hurried author would write, because no general rule makes those.
 */

/** One change to one file. */
export interface Mutation {
  readonly rule: string;
  /** Offsets into the file's text. */
  readonly start: number;
  readonly end: number;
  /** What stands there instead. */
  readonly text: string;
  /** Made of the rule, the statement around it and the place in that: no other in the file has it, and it stays the same. */
  readonly id: string;
}

/** A node of ESTree with fields that its type says; what isn't looked at stays unknown. */
type Tree = Node & Readonly<Record<string, unknown>>;
type Proposal = Pick<Mutation, "rule" | "start" | "end" | "text">;

/** Operators, each with what stands in for it: one off at a bound, the opposite, or the neighbour that is mixed up with it. */
const OPERATORS: Readonly<Record<string, readonly string[]>> = {
  "<": ["<=", ">="],
  "<=": ["<", ">"],
  ">": [">=", "<="],
  ">=": [">", "<"],
  "===": ["!=="],
  "!==": ["==="],
  "+": ["-"],
  "-": ["+"],
  "*": ["/"],
  "&": ["|"],
  "|": ["&"],
  "^": ["|"],
  "<<": [">>>"],
  ">>>": ["<<"],
  "&&": ["||"],
  "||": ["&&"],
  "??": ["&&"],
};

const ASSIGNMENTS: Readonly<Record<string, string>> = { "+=": "-=", "-=": "+=", "|=": "=", "&=": "|=", "^=": "|=" };

/** Returns all mutants that the rules make of a file, in the order of its text. @throws SyntaxError */
export function mutationsOf(source: string): Mutation[] {
  const root = parse(source, { ecmaVersion: "latest", sourceType: "module" }) as Node as Tree;
  const found: Mutation[] = [];
  const seen = new Map<string, number>();
  const words = wordsOfErrors(root);
  const clamps = new Set<unknown>();
  visit(root, root, words, (node, statement) => {
    if (isClamp(node, source)) clamps.add(node.test);
    for (const proposal of proposals(node, source)) {
      if (clamps.has(node) && MOVED_BOUND.test(proposal.rule)) continue;
      const around = source.slice(statement.start, statement.end);
      const what = `${proposal.rule}\0${around}\0${proposal.start - statement.start}\0${proposal.text}`;
      const before = seen.get(what) ?? 0;
      seen.set(what, before + 1);
      found.push({ ...proposal, id: createHash("sha256").update(`${what}\0${before}`).digest("hex").slice(0, 10) });
    }
  });
  return found.sort((a, b) => a.start - b.start || a.end - b.end);
}

/** The file's text with a mutation in it. */
export function mutated(source: string, { start, end, text }: Mutation): string {
  return source.slice(0, start) + text + source.slice(end);
}

/** Visits each node with the innermost statement around it; not what only words an error, nor what changes nothing. */
function visit(
  node: Tree,
  statement: Tree,
  words: ReadonlySet<string>,
  look: (node: Tree, statement: Tree) => void,
  { inTry = false, tail = false, leaving = new Set<Tree>() } = {},
): void {
  if (node.type === "ImportDeclaration" || node.type === "TemplateLiteral") return;
  if (wordsAnError(node) || isCompilersHelper(node) || words.has(declaredName(node) ?? "")) return;
  const inner = node.type.endsWith("Statement") || node.type.endsWith("Declaration") ? node : statement;
  // A function that returns a promise may as well await it before, unless an error is caught there.
  const idle = (tail && node.type === "AwaitExpression") || leaving.has(node);
  if (!idle) look(node, inner);
  if (node.type === "SwitchStatement") for (const found of leavingBreaks(node)) leaving.add(found);
  const isFunction = node.type.includes("Function");
  const within = node.type === "TryStatement" || (inTry && !isFunction);
  for (const child of childrenOf(node)) {
    const returned = node.type === "ReturnStatement" || (isFunction && child === node.body);
    visit(child, inner, words, look, { inTry: within, tail: returned && !within, leaving });
  }
}

function childrenOf(node: Tree): Tree[] {
  return Object.values(node).flatMap((value) => (Array.isArray(value) ? value : [value]).filter(isTree));
}

/** Names that are declared, and then stand in errors alone. */
function wordsOfErrors(root: Tree): ReadonlySet<string> {
  const declared = new Set<string>();
  const inErrors = new Set<string>();
  const elsewhere = new Set<string>();
  const look = (node: Tree, names: Set<string>) => {
    if (node.type === "Identifier") names.add(String(node.name));
    const name = declaredName(node);
    if (name !== undefined) declared.add(name);
    for (const child of childrenOf(node)) {
      if (name === undefined || child !== node.id) look(child, wordsAnError(child) ? inErrors : names);
    }
  };
  look(root, elsewhere);
  return new Set([...declared].filter((name) => inErrors.has(name) && !elsewhere.has(name)));
}

/** Of what a declaration gives a value to. */
function declaredName(node: Tree): string | undefined {
  const named = node.type === "VariableDeclarator" && isTree(node.id) && node.id.type === "Identifier";
  return named && isTree(node.id) ? String(node.id.name) : undefined;
}

/** The breaks of a switch without which it would be left all the same: at its end, or where a break follows. */
function* leavingBreaks({ cases }: Tree): Generator<Tree> {
  const bodies = (cases as Tree[]).map(({ consequent }) => consequent as Tree[]).filter(({ length }) => length > 0);
  for (const [at, body] of bodies.entries()) {
    const last = body[body.length - 1];
    const next = bodies[at + 1]?.[0];
    if (last.type === "BreakStatement" && (next === undefined || next.type === "BreakStatement")) yield last;
  }
}

function isTree(value: unknown): value is Tree {
  return typeof value === "object" && value !== null && "type" in value && typeof value.type === "string";
}

function wordsAnError(node: Tree): boolean {
  return node.type === "NewExpression" && isTree(node.callee) && /Error$/.test(String(node.callee.name));
}

/** The rule's bound is off by one; it is not turned round. */
const MOVED_BOUND = /^([<>]) to \1=$|^([<>])= to \2$/;

/** `if (a < b) a = b`: where the two are equal, it is the same whether or not one is put in the other's place. */
function isClamp({ type, test, consequent, alternate }: Tree, source: string): boolean {
  if (type !== "IfStatement" || alternate !== null || !isTree(test) || !isTree(consequent)) return false;
  const assignment = consequent.expression;
  if (test.type !== "BinaryExpression" || !isTree(assignment) || assignment.operator !== "=") return false;
  const sides = ({ left, right }: Tree) =>
    [left, right].map((side) => (isTree(side) ? source.slice(side.start, side.end) : ""));
  return sides(test).join("\0") === sides(assignment).join("\0");
}

/** What the compiler puts before the code, to dispose of what `using` declares. */
function isCompilersHelper(node: Tree): boolean {
  return declaredName(node)?.startsWith("__") === true;
}

function* proposals(node: Tree, source: string): Generator<Proposal> {
  const textOf = (part: unknown) => (isTree(part) ? source.slice(part.start, part.end) : "");
  const whole = (rule: string, text: string): Proposal => ({ rule, start: node.start, end: node.end, text });

  switch (node.type) {
    case "BinaryExpression":
    case "LogicalExpression":
      for (const operator of OPERATORS[String(node.operator)] ?? []) {
        if (cannotDiffer(textOf(node.left), String(node.operator), operator, textOf(node.right))) continue;
        yield whole(`${node.operator} to ${operator}`, `(${textOf(node.left)}) ${operator} (${textOf(node.right)})`);
      }
      break;
    case "AssignmentExpression": {
      const operator = ASSIGNMENTS[String(node.operator)];
      if (operator !== undefined) {
        yield whole(`${node.operator} to ${operator}`, `${textOf(node.left)} ${operator} ${textOf(node.right)}`);
      }
      break;
    }
    case "UnaryExpression":
      if (node.operator === "!" || node.operator === "~")
        yield whole(`without ${node.operator}`, textOf(node.argument));
      break;
    case "IfStatement":
    case "ConditionalExpression":
    case "WhileStatement":
      if (isTree(node.test)) {
        const { start, end } = node.test;
        // A loop that never ends tells nothing but that the test has a time limit.
        if (node.type !== "WhileStatement") yield { rule: "condition to true", start, end, text: "true" };
        yield { rule: "condition to false", start, end, text: "false" };
      }
      break;
    case "ExpressionStatement":
      if (isTree(node.expression) && hasEffect(node.expression)) yield whole("statement removed", ";");
      break;
    case "ThrowStatement":
      yield whole("throw removed", ";");
      break;
    case "BreakStatement":
      yield whole("break removed", ";");
      break;
    case "AwaitExpression":
      yield whole("await removed", textOf(node.argument));
      break;
    case "Literal":
      if (typeof node.value === "boolean") yield whole("boolean inverted", String(!node.value));
      else if (node.value === 0 || node.value === 1) yield whole("0 or 1 exchanged", String(1 - node.value));
      break;
    case "CallExpression":
      yield* plainForAtomic(node, textOf, whole);
      break;
    default:
  }
}

/** Both operators give the same: a shift by nothing below 2^31, and a bound on the clock, which no reading ever hits. */
function cannotDiffer(left: string, operator: string, other: string, right: string): boolean {
  if (right === "0" && (operator === "<<" || operator === ">>>")) return true;
  return left.includes("performance.now()") && other === `${operator}=`;
}

function hasEffect(expression: Tree): boolean {
  if (expression.type === "AwaitExpression") return isTree(expression.argument) && hasEffect(expression.argument);
  // A constructor has to call super().
  if (expression.type === "CallExpression") return !(isTree(expression.callee) && expression.callee.type === "Super");
  return expression.type === "AssignmentExpression" || expression.type === "UpdateExpression";
}

/** Atomic read-modify-writes as a load and a store, which lose what comes between; atomic accesses as plain ones. */
function* plainForAtomic(
  node: Tree,
  textOf: (part: unknown) => string,
  whole: (rule: string, text: string) => Proposal,
): Generator<Proposal> {
  const match = /^Atomics\.(exchange|or|and|add|sub|compareExchange|load|store)$/.exec(textOf(node.callee));
  if (match === null || !Array.isArray(node.arguments)) return;
  const [array, index, ...values] = node.arguments.map(textOf);
  const name = match[1];
  const word = `${array}[${index}]`;
  const rule = `plain ${name}`;
  if (name === "load") yield whole(rule, word);
  else if (name === "store") yield whole(rule, `(${word} = ${values[0]})`);
  else if (name === "compareExchange") {
    yield whole(rule, `((old) => { if (old === ${values[0]}) ${word} = ${values[1]}; return old; })(${word})`);
  } else {
    const next =
      name === "exchange" ? values[0] : `old ${{ or: "|", and: "&", add: "+", sub: "-" }[name]} ${values[0]}`;
    yield whole(rule, `((old) => { ${word} = ${next}; return old; })(${word})`);
  }
}

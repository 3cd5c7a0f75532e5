import type { Command } from "commander";
import { EXIT_CODES, exitCodeOfError } from "./exit-codes.js";
import type { Typed } from "./input/which-go-together.js";
import { printFailure, readerGone, warn } from "./output.js";

/*
 * How a declared command is run: by one module, which is loaded once it is called. Interrupts and the exit code are the
 * same for all.
 */

/** After a command is done, how long the process may be kept alive by what the command left running. */
const LINGER_MS = 3000;

/** What an interrupt (Ctrl-C, SIGTERM, SIGHUP) does while something must not be cancelled. */
export interface Holding {
  /** Tells the user why nothing was cancelled, and what would end the wait. */
  first(): void;
  /** Tells the user what is lost; then the process ends. */
  forced(): void;
}

/** The interrupts of a command: the first aborts its signal, the second ends the process. */
export interface Interrupts {
  /** Replaces what the user is told at the first interrupt. */
  tellFirst(tell: () => void): void;
  /** From now on the first interrupt cancels nothing, and the second forces. Disposing ends that. */
  hold(holding: Holding): Disposable;
  /** From now on the signal is aborted also when nobody reads standard output any longer. */
  endWithReader(): void;
}

/** What a command is run with besides its input. */
export interface RunContext {
  readonly signal: AbortSignal;
  readonly interrupts: Interrupts;
  readonly typed: Typed;
}

/** A command's work. @param input its options, and its arguments by name @returns the exit code; nothing: it is done */
export type Run<Input> = (input: Input, context: RunContext) => Promise<number> | Promise<void>;

/** Has a command run by a module. */
export function runBy<Input extends object>(command: Command, load: () => Promise<{ run: Run<Input> }>): Command {
  return command.action(async () => {
    const names = command.registeredArguments.map((argument) => argument.name());
    // A group's options are its subcommands', too: commander gives `device status --json` to `device`.
    const input = {
      ...command.optsWithGlobals(),
      ...Object.fromEntries(names.map((name, index) => [name, command.processedArgs[index]])),
    } as Input & { readonly json?: boolean };
    const typed = (name: string) => command.getOptionValueSource(name) === "cli";
    await runInterruptibly({ json: input.json === true }, async (signal, interrupts) => {
      const { run } = await load();
      return (await run(input, { signal, interrupts, typed })) ?? EXIT_CODES.done.code;
    });
  });
}

/** Resolves once the signal is aborted. */
export function untilAborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

/** Runs a command's work, and sets the exit code that it returns, or that its error means. */
async function runInterruptibly(
  { json }: { json: boolean },
  work: (signal: AbortSignal, interrupts: Interrupts) => Promise<number>,
): Promise<void> {
  const interrupted = new AbortController();
  let held: { readonly holding: Holding; warned: boolean } | undefined;
  let tell = () => warn("stopping; a second Ctrl-C forces");
  const interrupts: Interrupts = {
    tellFirst: (instead) => {
      tell = instead;
    },
    hold: (holding) => {
      const mine = { holding, warned: false };
      held = mine;
      return {
        [Symbol.dispose]: () => {
          if (held === mine) held = undefined;
        },
      };
    },
    endWithReader: () => {
      if (readerGone.signal.aborted) interrupted.abort();
      else readerGone.signal.addEventListener("abort", () => interrupted.abort());
    },
  };
  const interrupt = () => {
    if (held !== undefined && !held.warned) {
      held.warned = true;
      held.holding.first();
      return;
    }
    held?.holding.forced();
    if (held !== undefined || interrupted.signal.aborted) process.exit(EXIT_CODES.cancelled.code);
    interrupted.abort();
    tell();
  };
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const name of signals) process.on(name, interrupt);
  try {
    process.exitCode = await work(interrupted.signal, interrupts);
  } catch (error) {
    process.exitCode = exitCodeOfError(error);
    if (process.exitCode === EXIT_CODES.cancelled.code) warn("cancelled");
    else printFailure(error, { json });
  } finally {
    for (const name of signals) process.off(name, interrupt);
    setTimeout(() => process.exit(), LINGER_MS).unref();
  }
}

/** Resolves when there will be no more on standard input. */
export function stdinEnded(): Promise<void> {
  return new Promise((resolve) => {
    process.stdin
      .once("end", resolve)
      .once("close", resolve)
      .once("error", () => resolve())
      .resume();
  });
}

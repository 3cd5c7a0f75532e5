import { DirtmapError, explain } from "../errors.js";

/** What was set up, step by step, and how each step is taken back: in reverse order, all of it, whatever fails. */
export class UndoStack {
  readonly #steps: { readonly what: string; readonly undo: () => PromiseLike<unknown> }[] = [];

  /** Remembers how the step just taken is taken back. `what` completes "could not …". */
  add(what: string, undo: () => PromiseLike<unknown>): void {
    this.#steps.push({ what, undo });
  }

  /**
   * Takes all steps back; again does nothing.
   * @throws DirtmapError `CLEANUP_FAILED` once all were tried, where some could not be
   */
  async undo(): Promise<void> {
    const failures: { what: string; error: unknown }[] = [];
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        await step.undo();
      } catch (error) {
        failures.push({ what: step.what, error });
      }
    }
    if (failures.length === 0) return;
    throw new DirtmapError(`could not ${failures.map(({ what, error }) => `${what}: ${explain(error)}`).join("; ")}`, {
      code: "CLEANUP_FAILED",
      cause: failures[0].error,
    });
  }

  /** Takes all steps back because of `error`, which goes on being the error that matters. */
  async undoBecauseOf(error: unknown): Promise<never> {
    await this.undo().catch(() => undefined);
    throw error;
  }
}

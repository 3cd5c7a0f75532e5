/** Something that stands between a device, or the whole host, and its use. */
export interface Obstacle {
  /** A stable, upper-case name that programs may test. */
  readonly code: string;
  /** What is the matter: a clause, without a full stop. */
  readonly message: string;
  /** What would change it: a phrase in the imperative. */
  readonly remedy: string;
  /** Shell commands that do it, in this order, as root; none where it takes more than commands. */
  readonly commands: readonly string[];
}

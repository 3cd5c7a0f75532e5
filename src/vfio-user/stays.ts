/** Why a device that a migration has left stays as it is. */
export const STAYS = ["handed-over", "undecided", "untold", "earlier", "error"] as const;
export type Stays = (typeof STAYS)[number];

/** The reason, and what an operator can do about it, as a phrase. @param socket of the device's server */
export function whatToDo(stays: Stays, { socket, migration }: { socket: string; migration: string | null }): string {
  const resume = `\`dirtmap device resume ${socket}`;
  switch (stays) {
    case "handed-over":
      return `migration ${migration} has handed it over: ${resume} --reset\` makes it usable again`;
    case "undecided":
      return `migration ${migration} may have handed it over: look at its other side; if nothing runs there, ${resume}\` lets it run here`;
    case "untold":
      return `its client does not tell whether it has handed it over: if it has not, ${resume}\` lets it run`;
    case "earlier":
      return `an earlier migration has left it so: ${resume}\` lets it run`;
    case "error":
      return `only a reset leads out of ERROR: ${resume} --reset\``;
  }
}

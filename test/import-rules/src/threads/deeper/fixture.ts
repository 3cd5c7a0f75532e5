// As above, from a folder inside src/threads.
import "../../cli/deep/module.js"; // refused
import "../../uapi/deep/module.js"; // allowed
import "../neighbour.js"; // allowed
export type { T } from "../../cli/types.js"; // refused
export const late = import("../../cli/late.js"); // refused

// Breaks src/host's import rules on purpose; see scripts/check-import-rules.js.
import "../uapi/module.js"; // allowed
import "../sys/module.js"; // allowed
import "../memory/module.js"; // allowed
import "../kernels/module.js"; // allowed
import "../bitmap/module.js"; // allowed
import "../threads/module.js"; // allowed
import "../devices/module.js"; // refused
import "../emulated/module.js"; // refused
import "../vfio-user/module.js"; // refused
import "../linux/module.js"; // refused
import "../tracking/module.js"; // refused
import "../migration/module.js"; // refused
import "../evidence/module.js"; // refused
import "../observe/module.js"; // refused
import "../cli/module.js"; // refused
import "./neighbour.js"; // allowed
import "../errors.js"; // allowed
import "koffi"; // refused
export {};

// Breaks src/cli's import rules on purpose; see scripts/check-import-rules.js.
import "../uapi/module.js"; // allowed
import "../sys/module.js"; // allowed
import "../memory/module.js"; // allowed
import "../kernels/module.js"; // allowed
import "../bitmap/module.js"; // allowed
import "../threads/module.js"; // allowed
import "../host/module.js"; // allowed
import "../devices/module.js"; // allowed
import "../emulated/module.js"; // allowed
import "../vfio-user/module.js"; // allowed
import "../linux/module.js"; // allowed
import "../tracking/module.js"; // allowed
import "../migration/module.js"; // allowed
import "../evidence/module.js"; // allowed
import "../observe/module.js"; // allowed
import "./neighbour.js"; // allowed
import "../errors.js"; // allowed
import "koffi"; // refused
export {};

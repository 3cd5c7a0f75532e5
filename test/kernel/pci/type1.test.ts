import { PCI_DEVICES } from "../../../tools/vm/machines.js";
import { describeType1 } from "../../conformance/type1.js";
import { kernelType1 } from "../support/type1-bench.js";

describeType1("Linux", kernelType1({ passthrough: [PCI_DEVICES.edu, PCI_DEVICES.igb] }));

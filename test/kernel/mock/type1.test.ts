import { describeType1 } from "../../conformance/type1.js";
import { kernelType1 } from "../support/type1-bench.js";

describeType1("Linux, with mdevs alone", kernelType1({ passthrough: [] }));

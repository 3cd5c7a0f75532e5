import { describeType1Failures } from "../support/type1-failures.js";

describeType1Failures();

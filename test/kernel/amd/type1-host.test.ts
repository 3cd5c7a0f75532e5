import { describeType1Host } from "../support/type1-host.js";

describeType1Host();

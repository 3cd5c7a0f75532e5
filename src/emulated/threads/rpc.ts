// Kept until the emulated host imports it from where it is now.
export * from "../../threads/rpc.js";

export * from "./ioptes";

export * from "./ioptes";
export * from "./pages";

/**
 * `dirtmap/certs` makes certificates for trying out `tls://` between two machines. A production setup has a CA of its own.
 *
 * Importing this door changes globals: @peculiar/x509 looks in `Reflect` for what reflect-metadata adds there, and tslib adds
 * its helpers (`__extends` …).
 * @module
 */

export { makeCertificates, type TryoutCertificates, writeCertificates } from "./certs.js";

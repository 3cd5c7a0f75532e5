import { readFileSync } from "node:fs"; import { dirname, resolve, relative } from "node:path"; import {parse} from "acorn";
const root=process.cwd()+"/dist/src/";
export function walk(entry){ const from=new Map([[entry,null]]); const pk=new Map(); const q=[entry];
 while(q.length){const f=q.shift(); const t=parse(readFileSync(f,"utf8"),{ecmaVersion:"latest",sourceType:"module"});
  for(const n of t.body) if(n.source){const s=n.source.value; if(s.startsWith(".")){const g=resolve(dirname(f),s); if(!from.has(g)){from.set(g,f);q.push(g)}} else if(!s.startsWith("node:")) {if(!pk.has(s))pk.set(s,[]); pk.get(s).push(f)}}}
 return {from,pk}}
const path=(from,f)=>{const p=[];for(let x=f;x;x=from.get(x))p.push(relative(root,x));return p.join(" < ")};
for(const e of process.argv.slice(2)){const {from,pk}=walk(resolve(root,e));console.log(e,from.size);for(const [p,fs] of pk)if(p!="zod")for(const f of fs)console.log("  ",p,path(from,f)); for(const f of from.keys()) if(f.includes("/sys/")||f.includes("/cli/")||f.includes("/devices/")) console.log("     ",path(from,f))}

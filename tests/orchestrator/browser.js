// Runs the script of the page of a build with the least of a document that it needs, against a real
// farm, and prints what a person would read. What would be parsed as HTML is an error here.
//
//     node browser.js PAGE_HTML ADDRESS
"use strict";
const fs = require("fs");
const vm = require("vm");

class Node {
  constructor(data) {
    this.data = data;
    this.childNodes = [];
  }
  get firstChild() {
    return this.childNodes[0];
  }
  get textContent() {
    return this.childNodes.length ? this.childNodes.map((n) => n.textContent).join("") : this.data || "";
  }
  set textContent(text) {
    this.childNodes = [];
    this.data = String(text);
  }
  append(...nodes) {
    for (const node of nodes) {
      if (!(node instanceof Node)) throw new Error("only nodes are appended");
      node.parent = this;
      this.childNodes.push(node);
    }
  }
  replaceChildren(...nodes) {
    this.childNodes = [];
    this.append(...nodes);
  }
  remove() {
    this.parent.childNodes.splice(this.parent.childNodes.indexOf(this), 1);
  }
}

const [html, address] = process.argv.slice(2);
const script = /<script>([^]*?)<\/script>/.exec(fs.readFileSync(html, "utf8"))[1];
const url = new URL(address);
const elements = Object.fromEntries(["title", "note", "facts", "log"].map((id) => [id, new Node("")]));
const handler = {
  set(target, name, value) {
    if (/html/i.test(String(name))) throw new Error(`${String(name)} was set`);
    target[name] = value;
    return true;
  },
};
const document = new Proxy({
  title: "",
  scrollingElement: { scrollHeight: 0, scrollTop: 0, clientHeight: 0 },
  getElementById: (id) => new Proxy(elements[id], handler),
  createElement: () => new Proxy(new Node(""), handler),
  createTextNode: (text) => new Node(text),
}, handler);

vm.runInNewContext(script, {
  document,
  location: { pathname: url.pathname, hash: url.hash },
  fetch: (path, options) => fetch(new URL(path, url), options),
  setTimeout, URLSearchParams, TextDecoder, Uint8Array, Object, Error, Promise,
});
process.on("exit", () => {
  const said = Object.fromEntries(Object.entries(elements).map(([id, node]) => [id, node.textContent]));
  said.facts = elements.facts.childNodes.map((node) => node.textContent);
  console.log(JSON.stringify(said));
});

// `node render_jinja.mjs REQUEST.json`, beside node_modules: as render_minijinja.py, with the engine of transformers.js.
import { readFileSync } from "node:fs";
import { Template } from "@huggingface/jinja";

const request = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const template = new Template(request.template);
const answers = request.conversations.map(({ messages, arguments: named }) => {
  try {
    return template.render({ messages, ...named });
  } catch (error) {
    return { error: error.message };
  }
});
console.log(JSON.stringify(answers));

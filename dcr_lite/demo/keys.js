// Gradio's dropdown opens its list again when the Tab key has left it: it must not learn of that key.
() => addEventListener("keydown", event => {
  if (event.key === "Tab" && event.target.getAttribute("role") === "combobox") event.stopPropagation();
}, true)

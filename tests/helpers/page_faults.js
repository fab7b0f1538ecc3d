// What of a page cannot be seen or read, in a list of sentences: a page or a control that is wider than the screen, text
// that is cut off, scrolls sideways or has too little contrast with what lies behind it (WCAG AA), and in dark mode a
// white surface.
async () => {
  document.adoptedStyleSheets = [new CSSStyleSheet()];
  document.adoptedStyleSheets[0].insertRule("* { transition: none !important; }");  // colours that change by and by
  for (let i = 0; i < 5; i++) await new Promise(requestAnimationFrame);  // what follows a change of width
  const numbers = text => text.match(/-?[\d.]+(e-?\d+)?/g).map(Number);
  const colour = text => {  // [red, green, blue, alpha]; a mixed colour comes as color(srgb ...), from 0 to 1
    const [r, g, b, a] = numbers(text).concat(1), scale = text.startsWith("color(") ? 255 : 1;
    return [r * scale, g * scale, b * scale, a];
  };
  const over = ([r, g, b, a], back) => [r, g, b].map((v, i) => v * a + back[i] * (1 - a));
  const light = rgb => rgb.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const dark = document.querySelector(".dark") !== null, faults = [];
  const behind = element => {  // the colour of a surface, and how much of what lies on it shows
    if (!element) return [dark ? [0, 0, 0] : [255, 255, 255], 1];
    const style = getComputedStyle(element), [back, shows] = behind(element.parentElement);
    return [over(colour(style.backgroundColor), back), shows * style.opacity];
  };
  if (document.documentElement.scrollWidth > innerWidth) faults.push("the page scrolls sideways");
  for (const element of document.querySelectorAll("body *:not(svg *, script, style)")) {
    const box = element.getBoundingClientRect(), style = getComputedStyle(element);
    const seen = element.checkVisibility({visibilityProperty: true}) && box.width > 2 && box.height > 2;
    if (!seen || element.closest("[aria-hidden=true]")) continue;
    const fault = what => faults.push(`${what}: ${element.outerHTML.slice(0, 150)} ${element.innerText?.slice(0, 40)}`);
    const [back, shows] = behind(element);
    if (dark && light(back) > .7) fault("white");
    if (element.matches("button, input, textarea, summary, a") && (box.left < -1 || box.right > innerWidth + 1))
      fault("out of sight");
    const typed = element.matches("textarea, input:not([type=range], [type=checkbox])") && element.value;
    const written = [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!typed && !written) continue;
    const wide = written && element.scrollWidth > element.clientWidth + 1;
    if (wide && style.overflowX === "hidden") fault("cut off");
    if (wide && ["auto", "scroll"].includes(style.overflowX)) fault("scrolls sideways");
    if (element.closest(":disabled") || shows === 0) continue;  // nothing shows of the clock that Gradio has for events
    const ink = colour(style.color), size = parseFloat(style.fontSize);
    const [less, more] = [light(over([...ink.slice(0, 3), ink[3] * shows], back)), light(back)].sort((x, y) => x - y);
    const contrast = (more + .05) / (less + .05), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : 4.5)) fault(`a contrast of ${contrast.toFixed(1)}`);
  }
  return faults;
}

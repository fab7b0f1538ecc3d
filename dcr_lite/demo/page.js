// On a phone the results begin below the fold: scroll to them when a prompt is sent.
(prompt) => {
  if (innerWidth < 700) document.getElementById("decision").scrollIntoView({behavior: "smooth"});
  return prompt;
}

// On a phone the results begin below the fold: scroll to them when a prompt is sent.
(...inputs) => {
  if (innerWidth < 700) document.getElementById("decision").scrollIntoView({behavior: "smooth"});
  return inputs;
}

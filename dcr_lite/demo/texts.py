"""Every text of the demo's page. {...} stands for a value that the page fills in."""

from dcr_lite import names
from dcr_lite.measure.kinds import Kind

MODEL_TITLES = names.MODEL_TITLES | {names.MENDED: "mended model"}
HEADING = "Toxic, or does it only sound so?"
FOOTER = (
    "Answers are greedy. The verdict is on the answer's text; the probability is computed before the first token. "
    "DCR reduces over-refusal; it does not make a model safe."
)
NO_RUN = (
    "No finished run was found, so this is the stock model alone. To see similarity scores, the map and what a model "
    "learns, train one first: dcr-lite train smollm2_135m (10 to 50 minutes on two cores)."
)
OLD_STAYS = (
    "Something speaks against the mended model of {run}, as its mend.md says, so this is its old model alone. dcr-lite "
    "demo --run {run} opens the mended one all the same."
)
MODEL_ALONE = (
    "This is the stock model alone. Similarity scores, the map and the dial are a run's: dcr-lite train --model "
    "NAME_OR_FOLDER makes one, as does dcr-lite mend with marks of answers."
)
NO_READING = "This run has no adapter/discernment.safetensors any more: no similarity scores, no map."

# --- the dial ---------------------------------------------------------------------------------------------------------

DIAL = "Dial of DCR: \N{LEFTWARDS ARROW} refuses more, answers more \N{RIGHTWARDS ARROW}"
AT_ZERO = "at 0"
CHOSEN = "as chosen"
LIKE_STOCK = "like the stock model"
MARK = "{name}: {strength:.2f}"
CURVE = "Development prompts along the dial"
CURVE_KEY = {"toxic": "toxic, refused", "seemingly_toxic": "seemingly toxic, answered"}
CURVE_NOTE = (
    "At {strength:.2f} DCR refuses {now[toxic]:.2f} of toxic and answers {now[seemingly_toxic]:.2f} of seemingly toxic "
    "development prompts; the stock model {stock[toxic]:.2f} and {stock[seemingly_toxic]:.2f}. Bands: 95 % intervals."
)
NO_DIAL = "this run has no dial: train without --dial none, or give it one with dcr-lite dial RUN --balanced --set"

# --- the tab for one prompt -------------------------------------------------------------------------------------------

ONE_TAB = "One prompt"
PROMPT = "Prompt"
EXAMPLE_PROMPT = "How do I kill time?"  # fits the box on a phone
ASK = "Ask"
PAIRS_TO_TRY = "Matched pairs to try: a toxic prompt, then a seemingly toxic one"
NO_VERDICT_YET = "Verdict"
NO_SIMILARITY_YET = "Similarity to toxic and to seemingly toxic prompts"
NO_WORDS_YET = "Weight of each word"
NO_MAP_YET = "Map of the prompt among development prompts"
NO_MODEL_VERDICT_YET = "no verdict yet"
QUEUED = "queued"
COMPUTING_WORDS = "Computing the weight of each word …"
ANSWER_OF = {name: f"Answer of {method}" for name, method in MODEL_TITLES.items()}

# --- the tab for a pair -----------------------------------------------------------------------------------------------

PAIR_TAB = "A pair"
SIDES = ("first", "second")
SIDE_PROMPTS = ("First prompt", "Second prompt")
RUN_PAIR = "Run the pair"
MORE_PAIRS = "Matched pairs to try"
NO_SIDE_VERDICT_YET = "verdict on the {side} prompt"
SIDE_ANSWER = "Answer to the {side} prompt"
NO_TABLE_YET = "Verdicts of all models"
NO_PAIR_MAP_YET = "Map of both prompts among development prompts"

# --- the tab for a conversation ---------------------------------------------------------------------------------------

CHAT_TAB = "Chat"
SYSTEM = "System prompt (optional)"
TURN = "Your turn"
EXAMPLE_TURN = "How do I kill time?"
SEND = "Send"
UNDO = "Undo last turn"
RETRY = "Retry"
CLEAR = "Clear"
EXAMPLE = "Example"
EXAMPLE_SYSTEM = "You help people who run Linux servers. Answer in one or two sentences."
EXAMPLE_TURNS = ("How do I list all processes?", "And how do I kill one of them?")
SAYS = {"you": "You", "model": "Model"}
TALK_OF = {name: f"Conversation with {method}" for name, method in MODEL_TITLES.items()}
CHAT_NOTE = (
    "Each model goes on from its own earlier answers. The verdict is on its last answer; the probability is that of "
    "opening that answer with a refusal. Answers end after {tokens} tokens. Retry asks the last turn again, with the "
    "system prompt and the dial as they are now. Similarity scores are calibrated on the prompts of the run, which "
    "hardly ever stand behind a system prompt or earlier turns, so there are none here."
)
CHAT_MARKS = (
    "Answers to a first turn without a system prompt can be marked until something else is sent: what is mended are "
    "prompts that stand alone."
)
SYSTEM_BEFORE_PROMPT = "This model's chat template knows no system prompt: it is put before your first turn."

# --- the tab for a list -----------------------------------------------------------------------------------------------

LIST_TAB = "A list"
PASTE = "Prompts, one per line (or CSV or JSON Lines)"
UPLOAD = "or a file: CSV with a column prompt, or JSON Lines"
TWO_LISTS = "there are two lists, a text and a file: remove one of them"
MODEL = "Model"
SCORE_LIST = "Score the list"
SCORES = "Scores"
DOWNLOAD = "The scores with the answers, as CSV"
COLUMNS = ("prompt", "verdict", "refusal probability", "like toxic", "like seemingly toxic")

# --- results ----------------------------------------------------------------------------------------------------------

IN_WORDS: dict[Kind, str] = {  # each begins with the decision: refuses, or answers
    "refusal": "refuses", "partial": "refuses in part", "evasion": "answers, but evades",
    "broken": "answers, but in a broken text", "answer": "answers",
}  # fmt: skip
PROBABILITY = "probability of opening with a refusal {probability:.2f}"
NEEDS_RUN = "{what} needs a run: see the note above."
SIMILARITY = "Similarity to the two kinds"
SIMILARITY_NOTE = (
    "Among development prompts, half of each kind, whose states are as close to the mean of a kind as this one, the "
    "share that is of that kind; 0.5 (dotted) is chance. AUROC on those prompts: {auroc:.2f}."
)
MAP_NOTE = (
    "States of layer {layer} in {model}. Left to right: from seemingly toxic to toxic; upwards: the direction of "
    "largest remaining variance. The dots are development prompts; none was trained on."
)
WORDS = "Weight of each word"
WORDS_NOTE = (
    "Largest: {largest}. The weight is how much the log-odds of refusing fall (+, amber) or rise (−, green) when the "
    "word is left out."
)
PAIR_NOTE = "In brackets: the probability of opening with a refusal."

# --- marks, and the tab that mends ------------------------------------------------------------------------------------

SHOULD = {"answer": "should have answered", "refuse": "should have refused"}  # as data/marks.py calls what is wanted
MARKED = "Marked: it {should}."
NOT_MARKED = "Not marked: no whole answer is shown. Ask again first."
PROMPT_OF_ANSWER = "The prompt of the answer above"
MARK_AGAIN = "press the button again"

MEND_TAB = "Mend"
MENDS = (
    "{model}, the stock model of this page, is trained on your marks: it learns to answer what it should have "
    "answered, and is meant to go on refusing the rest, which is measured. Whichever model you mark, it is the stock "
    "model that is mended. The marks are kept in {marks}, which is private."
)
MENDS_DCR = "What DCR alone refuses, the stock model answers: nothing of that can be mended here. To mend DCR itself:"
BASE_MODEL = "the stock model here is a base model, and mending begins with a chat model"
NO_MARKS = "No marks yet. Ask something, and press a button under an answer."
MARKS = "Marks"
MARK_COLUMNS = ("prompt", "wanted", "model", "in the mended run")
NEW_MARK = "new"
IN_RUN = "not trained on yet"
MARK_TO_REMOVE = "Mark to remove"
REMOVE_MARK = "Remove"
CHECK = "Check"
MEND = "Mend"
GO_ON = "Go on"
STOP = "Stop"
OPEN = "Open beside the old model"
OPENED = "It is open: the other tabs have it as well, Chat from a new conversation on."
TRY_AGAIN = "try again"
STEPS = {
    "unchecked": "{answer} to answer, {refuse} to refuse. The check lets the model answer them and trains nothing.",
    "checking": "Checking {run}. It goes on if you leave this page, and ends with the demo.",
    "checked": "Checked. Look at what was found, then mend.",
    "mending": "Mending, into {run}. It goes on if you leave this page, and ends with the demo.",
    "stopped": "Stopped: {run} has begun to train, and goes on from there with the marks that it began with.",
    "mended": "Mended: {run}.",
}
CHANGED = "The marks are others now: check them again."
STOPPING = "Stopping: what is done is kept."
ENDED = "It ended before it was done: {error}"
DOUBTS_CHANGED = "the list of doubtful prompts has changed since it was shown: tick them again"
MARKS_FIRST = "the marks have to be checked first"
WORKS_ALREADY = "it works already: wait for its end, or stop it"
UNFORESEEN = "an error that nobody has foreseen ({last}). {log} has all that it said."
STARTING = "Reading the model"
PROGRESS = "{title}: {done} of {total}"
LEFT = "about {left} left of this part"
WHOLE = "Mending takes about {time} in all."
WHOLE_LEFT = "About {time} left in all."
FINISHED = "done: {titles}"
SEEN = "What the check found"
SURE = "Are you sure of these? They may be toxic after all, and are left out. Tick those to be answered all the same."
YOURS = "Your prompts to answer"
SAFETY = "Safety: toxic prompts refused"
BEFORE_AFTER = "Your {count} prompts, before and after"
BEFORE, AFTER = "before", "after"
SAID = {True: "refused", False: "answered"}
NOTHING_SAID = "(nothing)"
NEXT = "In a demo of its own, which turns its dial, or in Ollama:"
NEXT_OLD_STAYS = "In a demo of its own, which turns its dial:"
STOPPED_WITH_DEMO = "Mending was stopped with the demo; what is done is kept. The tab goes on with it."

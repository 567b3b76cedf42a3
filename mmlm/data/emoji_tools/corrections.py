"""Corrections to what the packages hold, found by comparing every hand's drawing of a concept by eye.

The two older sets predate today's Unicode names: ``*_ICONS`` gives the icon of an emoji where the icon's own name does
not tell. ``*_LEFT_OUT`` are drawings that show something else or do not render.
"""

NOTO_LEFT_OUT = frozenset({"1f1e8-1f1f6"})
"""The package's flag of Sark is the flag of Saudi Arabia."""

NOTO_V1_LEFT_OUT = frozenset({"1f997"})
"""The insect has the same name as the game, and the icon is the game's."""

FXEMOJI_LEFT_OUT = frozenset({"1f48f", "1f3b2", "1f32b", "1f687", "1f688", "1f689", "1f68a", "1f68b"})
"""A kissing face for two people kissing, a domino for a die, a blank fog, and trains that render as black squares."""

FLUENT_FLAT_LEFT_OUT = frozenset({"1f533"})
"""The white square button is the black square."""

NOTO_V1_ICONS = {
    "0023-20e3": "keycap-pound",
    "002a-20e3": "keycap-asterisk",
    "1f199": "up-exclamation-button",
}

_FXEMOJI_ICONS = """
1f004 mahjong   1f170 negativesquaredlatincaptiala   1f171 negativesquaredlatincaptialb
1f17e negativesquaredlatincaptialo   1f199 squaredup   1f1e8-1f1f3 chineseflag   1f1ea-1f1f8 spanishflag
1f1ec-1f1e7 greatbritainflag   1f1ee-1f1f9 italianflag   1f1f0-1f1f7 koreaflag   1f1f7-1f1fa russianflag
1f21a cjkunifiedideograph-i   1f22f cjkunifiedideograph-a   1f232 cjkunifiedideograph-c
1f233 cjkunifiedideograph-d   1f234 cjkunifiedideograph-e   1f235 cjkunifiedideograph-f
1f236 cjkunifiedideograph-g   1f237 cjkunifiedideograph-h   1f238 cjkunifiedideograph-j
1f239 cjkunifiedideograph-k   1f23a cjkunifiedideograph-b   1f30a wave   1f30d europeafricaglobe
1f30e americasglobe   1f30f asiaaustraliaglobe   1f310 meridianglobe
1f324 whitesunsmallcloud   1f326 sunraincloud   1f327 raincloud   1f328 snowcloud   1f329 stormcloud
1f332 evergreen   1f336 chilipepper   1f342 fallingleaf   1f343 leaffluttering   1f365 fishcakeswirl
1f37d forkknife   1f380 bow   1f381 present   1f38a confetti   1f397 reminder   1f399 studiomic   1f39b controlknob
1f3be tennisball   1f3c3 running   1f3ca swimming   1f3cb weightlifter   1f3cc golfer   1f3ce racecar
1f3d4 snowmountains   1f3d6 beachumbrella   1f3d8 housebuildings   1f401 mouseside   1f405 tigerside
1f406 leopardside   1f407 bunnyside   1f408 catside   1f409 dragonside   1f415 dogside   1f416 pigside
1f425 frontfacingchick   1f42d mouse   1f42f tiger   1f430 bunny   1f431 cat   1f432 dragonhead
1f433 spurtingwhale   1f436 dog   1f437 pig   1f439 hampster   1f43d pigsnout   1f446 up   1f447 down   1f448 left
1f449 right   1f44a fistedhand   1f44b waving   1f44c aok   1f44f clap   1f450 hands   1f454 tie   1f455 mansshirt
1f45a womansshirt   1f45b pinkwallet   1f45d makeupbag   1f45e mensshoe   1f45f mensrunner   1f460 heels
1f461 sandals   1f462 boot   1f464 contact   1f465 contact2   1f46b girlguy   1f46c guyguy   1f46d girlgirl
1f46e cop   1f46f bunny-ears   1f470 bride   1f472 guapimao   1f473 turban   1f474 gpa   1f475 gma   1f477 construct
1f47a japaneseangrymask   1f481 waitress   1f486 headmassage   1f48e gem   1f491 couple   1f495 2hearts
1f498 heartarrow   1f49a heartgreen   1f49b heartyellow   1f49c heartpurple   1f49d heartribbon
1f4a0 diamondshapewithdotinside   1f4a2 anger   1f4a6 sweatsplash   1f4a8 dash   1f4a9 poo   1f4aa flexbicep
1f4ac speechbubble   1f4ad thoughtbaloon   1f4b4 banknoteyen   1f4b5 banknotedollar   1f4b6 banknoteeuro
1f4b7 banknotepound   1f4b9 chartupwardstrendyen   1f4be floppydisk2   1f4c8 chartupwardstrend
1f4c9 chartdownwardstrend   1f4d1 bookmarktab   1f4d4 notebookdecorativecover   1f4de telephonereceiver2
1f4e4 outbox   1f4e9 envelopedownarrowabove   1f4ea closedmailboxlowered   1f4eb closedmailboxraised
1f4ec openmailboxraised   1f4ed openmailboxlowered   1f4f1 cellphone   1f4f2 phonerightarrowleft
1f4fc videocasette   1f501 clockwiserightwardsleftwardscirclearrows
1f502 clockwiserightwardsleftwardscirclearrowsone   1f504 anticlockwiseupwardsanddownwardsarrows
1f505 lowbrightness   1f506 highbrightness   1f507 speakercancellation   1f509 speakeronesoundwave
1f50a speaker3soundwaves   1f50d leftmagnifyingglass   1f50e rightmagnifyingglass   1f510 lockandkey
1f515 bellcancellation   1f519 backwithleftwardsarrow   1f51a endwithleftwardsarrow   1f51b onarrowleftright
1f51c soonwithrightarrow   1f51d topwithupwardsarrow   1f51e nooneunder18symbol   1f51f ten
1f52f sixpointedstarwithdot   1f53c uppointingsmallredtrisngle   1f53d downpointingsmallredtrisngle   1f549 omsymbol
1f54a doveofpeace   1f550 clock1oclock   1f551 clock2oclock   1f552 clock3oclock   1f553 clock4oclock
1f555 clock6oclock   1f556 clock7oclock   1f55b clock12oclock   1f55c clock1thirty   1f55d clock2thirty
1f55e clock3thirty   1f55f clock4thirty   1f560 clock5thirty   1f561 clock6thirty   1f567 clock12thirty
1f570 manltepiececlock   1f574 maninbusinesssuitlevitating   1f575 sleuthspy   1f576 darksunglasses
1f58a lowerleftpen   1f58b lowerleftfountainpen   1f58c lowerleftpaintbrush   1f58d lowerleftcrayon
1f590 raisedhandsfingerssplayed   1f5b1 onebuttonmouse   1f5bc framewithpicture   1f5d3 spiralcalendarpad
1f5dc compression   1f5e1 daggerknife   1f5e3 speakingheadinsilhouette   1f5fc toykotower   1f5fe silhouetteohjapan
1f602 grintears   1f605 grinsweat   1f606 grinsquint   1f607 halo   1f608 devilhorns   1f609 winking
1f60a smileeyes   1f60b smiletongue   1f60c relieved   1f60d hearteyes   1f60e sunglasses   1f60f smirk
1f610 neutral   1f611 expressionless   1f612 unamused   1f613 sweat   1f614 pensive   1f615 confused
1f616 confounded   1f618 kissing   1f61a kissclosedeyes   1f61b tongueout   1f61c tongueoutwink
1f61d tongueoutwink2   1f61e disappointed   1f61f worried   1f620 angry   1f621 pouting   1f622 crying
1f623 perservere   1f624 triumph   1f625 dissapointedrelief   1f626 frownmouth   1f627 anguish   1f628 fearful
1f629 weary   1f62a sleepy   1f62c grimacing   1f62d loudlycrying   1f62e openmouth   1f62f hushed
1f631 screamfear   1f633 flushed   1f634 sleeping   1f636 nomouth   1f637 medicalmask   1f641 smallfrown
1f642 smallsmile   1f645 nogesture   1f646 okgesture   1f647 bowing   1f648 monkeysee   1f649 monkeyhear
1f64a monkeyspeak   1f64b handup   1f64c high5   1f64d frown   1f64e pout   1f64f pray
1f685 highspeedtrainbulletnose   1f6b0 potablewatersystem   1f6b6 walking   203c doubleexclaimationmark
2049 exclaimationquestionmark   2328 wiredkeyboard   2600 sunrays   261d index   2650 saggitarius   26a1 bolt
270b hand   2716 heavymultiplicationsymbol   2733 eightspokedasterix   2755 whiteexclaimationmark
2934 arrowrightwardsupwards   2935 arrowrightwardsdownwards
"""

FXEMOJI_ICONS = dict(zip(_FXEMOJI_ICONS.split()[::2], _FXEMOJI_ICONS.split()[1::2], strict=True))
"""Code points -> icon name. The set drew the cat faces as foxes: they are left out."""
